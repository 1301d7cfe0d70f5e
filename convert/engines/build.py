"""A checkpoint becomes engines.

Activations, caches and plain weights are bfloat16, logits float32. int4 and FP8 weights stay what they are in the
checkpoint; GPUs that do not know FP8 (compute capability below 8.9) get an engine of their own in which those
weights are bfloat16.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel, Field

from llmc.contracts.engine import EngineDescription
from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.contents import Contents, check, default_context
from llmc.convert.engines.decoding import decoding_notes
from llmc.convert.engines.engine import Steps, build_engine
from llmc.convert.engines.latent_attention import widest_absorbed
from llmc.convert.engines.lowering import allow_decomposition, lower
from llmc.convert.engines.plugins import Plugins, require_triton
from llmc.convert.engines.tensor_parallel import rank_notes, rank_of
from llmc.convert.engines.windows import windows
from llmc.convert.graph.build import graphs
from llmc.convert.graph.write import write
from llmc.convert.targets import TargetResult
from llmc.runtime.plugins import kernel_set
from llmc.tensorrt_package import TensorRTPackage

DTYPE = ir.DataType.BFLOAT16


class EngineOptions(BaseModel, extra="forbid"):
    """What a recipe may say."""

    context: int | None = Field(
        default=None,
        ge=16,
        le=1 << 24,
        description="cache entries per row, fixed when compiled; default 4096, or the model's limit if that is less",
    )
    batch: int = Field(default=1, ge=1, le=1 << 12, description="most rows of a step")
    prefill: int = Field(
        default=512, ge=16, le=1 << 20, description="most tokens per row of a step; a longer prompt takes several steps"
    )
    tensor_parallel: int = Field(
        default=1,
        ge=1,
        le=64,
        description="GPUs that hold the model together, each with an engine of its own: heads, inner channels of MLPs "
        "and experts, and the vocabulary are divided among them",
    )
    plugins: bool = Field(default=True, description="false: only what TensorRT has of its own")
    timeout: float = Field(default=3600, gt=0, le=1e6, description="seconds that compiling one engine may take")


def build(
    package: TensorRTPackage,
    checkpoint: Checkpoint,
    sms: Sequence[int],
    options: EngineOptions,
    directory: Path,
    progress: ProgressFunction,
) -> TargetResult:
    """Write engines/<prefix>-sm<sm>….engine, its .json, and the same for the multi-token-prediction layer.

    The engines of one call differ in the GPUs they are for: together they serve all of `sms`, compute capabilities
    times ten. With `tensor_parallel` there is one of each for every rank.
    """
    spec = checkpoint.spec
    check(package.name, spec, options, {})
    ranks = options.tensor_parallel
    parts = [rank_of(checkpoint, rank, ranks) for rank in range(ranks)]
    context = default_context(spec, options.context)
    # A token per row, or two when a drafted one is verified with it.
    widths = (1, 2) if spec.num_mtp_layers else (1,)
    # At least two rows: for one, the compiler sees matrix times vector, which it does not fuse with FP8 weights.
    prefill = min(options.prefill, context)
    absorbed = widest_absorbed(spec, prefill, context) if options.plugins else None
    steps = Steps(context, max(2, options.batch), widths, prefill, windows(context, prefill), absorbed)

    contents = Contents(parts[0], options.plugins, steps, options.batch)
    groups = contents.groups(sms)
    notes = contents.notes(groups) + rank_notes(spec, ranks)
    result = TargetResult(package.name, files={}, weight_bytes=0, file_bytes=0, notes=notes)
    engines = directory / "engines"
    work = engines / ".lowered"  # always the same: what a killed build left there is cleared away
    for sm, code_types in groups:
        name = f"{package.prefix}-" + "-".join(f"sm{n}" for n in sm)
        plugins = Plugins() if options.plugins else None
        models_of = []
        for part in parts:
            models = graphs(part, DTYPE, context, images=True)
            models.pop("vision", None)  # the tower is run by ONNX Runtime
            for model in models.values():
                windowed = len(steps.windows) > 1
                lower(model, part.spec, DTYPE, code_types, widths, options.batch, plugins, windowed, absorbed)
                allow_decomposition(model)
            models_of.append(models)
        kernels = None
        if plugins:
            require_triton(package)
            engines.mkdir(exist_ok=True)
            kernels = engines / f"{name}{f'-of{ranks}' if ranks > 1 else ''}.kernels.safetensors"
            kernel_set.write(kernels, plugins.compile(sm, partial(progress, f"{name}: compiling kernels")))
            result.files[kernels.name] = kernels.relative_to(directory).as_posix()
            result.file_bytes += kernels.stat().st_size
        for rank, models in enumerate(models_of):
            stem = f"{name}-rank{rank}of{ranks}" if ranks > 1 else name
            shutil.rmtree(work, ignore_errors=True)
            onnx = {role: f"{role}.onnx" for role in models}
            write(result.name, models, work, onnx, partial(progress, f"{stem}: writing weights"))
            for role, model in models.items():
                engine = engines / (f"{stem}.engine" if role == "main" else f"{stem}-{role}.engine")
                description = build_engine(
                    package,
                    model,
                    work / onnx[role],
                    engine,
                    sm,
                    steps,
                    options.timeout,
                    partial(progress, f"{engine.stem}: compiling"),
                    kernels,
                    rank,
                    ranks,
                )
                _note(result, description, directory, engine)
            shutil.rmtree(work)
    return result


def _note(result: TargetResult, description: EngineDescription, directory: Path, engine: Path) -> None:
    """What the manifest says of an engine."""
    result.notes += [note for note in decoding_notes(description) if note not in result.notes]
    for path in (engine, engine.with_suffix(".json")):
        result.files[path.name] = path.relative_to(directory).as_posix()
        result.file_bytes += path.stat().st_size
    result.weight_bytes += sum(description.weight_bytes.values())
    written = description.to_json()
    keys = ("sm", "ranks", "rank", "bytes", "text_bytes", "weight_bytes", "programs")
    result.details[engine.stem] = {key: written[key] for key in keys if key in written}
