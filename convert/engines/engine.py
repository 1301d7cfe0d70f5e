"""One engine: compiled, checked against the weights it was made of, and described in a .json beside it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import onnx_ir as ir

from llmc.contracts.engine import EngineDescription, EngineProfile
from llmc.convert.engines.compiler import compile_engine
from llmc.convert.engines.decoding import check_decoding
from llmc.convert.engines.program import READERS, ProgramText, inspect
from llmc.convert.engines.weights import CODES_NAME
from llmc.convert.graph.write import op_histogram
from llmc.errors import MachineError
from llmc.tensorrt_package import TensorRTPackage

# How a compiled program calls the types of codes. Plugins take theirs packed in int32.
_CODES = {"int4": "int4", "int8": "int8", "float8e4m3fn": "fp8_e4m3", "int32": "int32"}
# An engine without its program text may be this much larger than its weights: other layouts, alignment.
_FACTOR = 1.3


@dataclass(frozen=True)
class Steps:
    """Which steps an engine can take.

    Attributes:
        context: cache entries per row
        batch: most rows
        widths: tokens per row of the steps that decode
        prefill: most tokens per row of all others
        windows: cache entries that a step may look at, ascending to the context; see windows.py
        absorbed: tokens per row up to which steps of prompts have a profile of their own, for their attention is
            another one; see latent_attention.py
    """

    context: int
    batch: int
    widths: tuple[int, ...]
    prefill: int
    windows: tuple[int, ...] = ()
    absorbed: int | None = None

    def profiles(self, model: ir.Model) -> list[EngineProfile]:
        """Return an optimization profile for each decode width, one or two for everything wider, and each window."""
        has_window = any(value.name == "window" for value in model.graph.inputs)
        ends = [max(self.widths), *([] if self.absorbed is None else [self.absorbed]), self.prefill]
        spans = [(width, width) for width in self.widths] + [(before + 1, end) for before, end in pairwise(ends)]
        return [
            EngineProfile(
                tokens=[least, most],
                window=window,
                shapes={
                    str(value.name): [
                        _shape(value, batch=1, sequence=least, num_logits=1, window=window, num_features=0),
                        _shape(value, batch=1, sequence=most, num_logits=1, window=window, num_features=0),
                        _shape(
                            value,
                            batch=self.batch,
                            sequence=most,
                            num_logits=most,
                            window=window,
                            num_features=self.batch * most,
                        ),
                    ]
                    for value in model.graph.inputs
                },
            )
            for least, most in spans
            for window in (self.windows if has_window else (self.context,))
        ]


def _shape(value: ir.Value, **sizes: int) -> list[int]:
    assert value.shape is not None
    return [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]


def build_engine(
    package: TensorRTPackage,
    model: ir.Model,
    onnx: Path,
    engine: Path,
    sm: Sequence[int],
    steps: Steps,
    timeout: float,
    progress: Callable[[float], None],
    kernels: Path | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> EngineDescription:
    """Compile `model`, which lies in the file `onnx`, and return what the .json says.

    Args:
        kernels: of its plugins
        rank: whose part of a model it is that `ranks` GPUs hold together

    MachineError if codes did not arrive in the engine as codes, or are decoded in every step.
    """
    _check_products(engine.name, model)
    profiles = steps.profiles(model)
    shapes = [profile.shapes for profile in profiles]
    plugins = [node for node in model.graph if "kernels" in node.attributes]
    compiled = compile_engine(package, onnx, engine, sm, shapes, timeout, progress, kernels)
    text = inspect(engine, len(profiles), _decoders(model)) if package.readable else ProgramText(0, [])
    description = EngineDescription(
        engine=engine.name,
        graph="mtp" if model.graph.name == "mtp" else "main",
        bytes=engine.stat().st_size,
        sha256=_sha256(engine),
        package=package.module,
        release=compiled.version,
        sm=list(sm),
        **({"ranks": ranks, "rank": rank} if ranks > 1 else {}),
        context=steps.context,
        batch=steps.batch,
        profiles=profiles,
        plugins=sorted({f"{node.domain}.{node.op_type}" for node in plugins}),
        kernels=None if kernels is None else kernels.name,
        kernel_sets=sorted({node.attributes["kernels"].as_string() for node in plugins}),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        weight_bytes=_weight_bytes(model),
        text_bytes=text.text_bytes,
        programs=text.programs,
        ops=op_histogram(model),
    )
    if package.readable:
        _check_codes(engine.name, description)
        check_decoding(engine.name, description)
    _check_size(engine.name, description, package.overhead)
    engine.with_suffix(".json").write_text(json.dumps(description.to_json(), indent=1) + "\n", encoding="utf-8")
    return description


def _check_codes(name: str, description: EngineDescription) -> None:
    weights = description.weight_bytes
    if len(description.programs) != len(description.profiles):
        raise MachineError(
            f"{name}: {len(description.programs)} programs found for {len(description.profiles)} profiles; llmc "
            f"cannot read what {description.package} {description.release} writes"
        )
    for stored, compiled in _CODES.items():
        for profile, program in zip(description.profiles, description.programs, strict=True):
            if (found := program.constant_bytes.get(compiled, 0)) < weights.get(stored, 0):
                raise MachineError(
                    f"{name}: of {weights[stored]} bytes of {stored} weights only {found} are in the program for "
                    f"{profile.tokens} tokens; the compiler widened the rest, so quantize them differently"
                )
            if (found := sum(getattr(program, reader).get(compiled, 0) for reader in READERS)) < weights.get(stored, 0):
                raise MachineError(
                    f"{name}: of {weights[stored]} bytes of {stored} weights only {found} are seen to be read in the "
                    f"program for {profile.tokens} tokens; llmc cannot read what {description.package} "
                    f"{description.release} writes"
                )


def _check_size(name: str, description: EngineDescription, overhead: int) -> None:
    weights = description.weight_bytes
    held, limit = description.bytes - description.text_bytes, _FACTOR * sum(weights.values()) + overhead
    if held > limit:
        raise MachineError(
            f"{name}: holds {held} bytes for {sum(weights.values())} bytes of weights; the compiler widened or "
            "copied some, so quantize them differently"
        )


def _check_products(name: str, model: ir.Model) -> None:
    """See `lowering._in_blocks`, which leaves none."""
    for node in model.graph:
        if node.op_type == "MatMul":
            x, weight = (_decoding(value) for value in node.inputs)
            if x and weight and "block_size" in weight.attributes and _is_float8(x) and _is_float8(weight):
                raise MachineError(f"{name}: {node.name} multiplies FP8 inputs with FP8 blocks, which comes out wrong")


def _decoders(model: ir.Model) -> dict[str, str]:
    """Which node decodes which weight."""
    found = {}
    for node in model.graph:
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if node.name and codes is not None and codes.is_initializer() and codes.name:
            found[node.name] = codes.name.removesuffix(CODES_NAME)
    return found


def _decoding(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a factor comes from, whatever was turned or cut on the way."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Transpose", "Reshape", "Slice"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _is_float8(decoding: ir.Node) -> bool:
    codes = decoding.inputs[0]
    assert codes is not None
    quantizing = codes.producer()
    if quantizing is not None:
        return quantizing.attributes["output_dtype"].as_int() == ir.DataType.FLOAT8E4M3FN
    return codes.dtype == ir.DataType.FLOAT8E4M3FN


def _weight_bytes(model: ir.Model) -> dict[str, int]:
    """By type."""
    count: Counter[str] = Counter()
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        count[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    return dict(sorted(count.items()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
