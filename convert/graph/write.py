"""Writing finished graphs: weights stream into one data file that all graphs of a target share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from llmc.convert.targets import TargetResult

# Smaller tensors stay inside the .onnx file.
_INLINE_BYTES = 1024


def write(
    name: str,
    models: Mapping[str, ir.Model],
    directory: Path,
    files: Mapping[str, str],
    progress: Callable[[float], None],
) -> TargetResult:
    """Write each model to its file under `directory`, the weights of all to `<file of main>.data`.

    Initializers of one name are one tensor, written once. Those that are external already, because they point
    into the checkpoint's files, stay where they are.
    """
    weights: dict[str, ir.TensorProtocol] = {}
    for model in models.values():
        for key, value in model.graph.initializers.items():
            assert value.const_value is not None
            if value.const_value.nbytes > _INLINE_BYTES:
                weights.setdefault(key, value.const_value)
    files = {role: files[role] for role in models}
    folder = (directory / files["main"]).parent
    folder.mkdir(parents=True, exist_ok=True)

    new = [tensor for tensor in weights.values() if not isinstance(tensor, ir.ExternalTensor)]
    if new:
        files["data"] = f"{files['main']}.data"
        total, done = sum(tensor.nbytes for tensor in new), 0

        def report(tensor: ir.TensorProtocol, _: ir.external_data.CallbackInfo) -> None:
            nonlocal done
            progress(done / total)
            done += tensor.nbytes

        data = Path(files["data"]).name
        written = ir.external_data.convert_tensors_to_external(new, folder, data, callback=report)
        weights |= {tensor.name: tensor for tensor in written}
    for role, model in models.items():
        for key, value in model.graph.initializers.items():
            value.const_value = weights.get(key, value.const_value)
        ir.save(model, directory / files[role])
    return TargetResult(
        name=name,
        files=files,
        weight_bytes=sum(tensor.nbytes for tensor in weights.values()),
        file_bytes=sum((directory / file).stat().st_size for file in files.values()),
        details={"ops": {role: op_histogram(model) for role, model in models.items()}},
    )


def op_histogram(model: ir.Model) -> dict[str, int]:
    """How often each op occurs in the main graph, without what a runtime computes once because it is constant.

    DequantizeLinear counts: runtimes keep it, so that weights stay small.
    """
    constant = set(model.graph.initializers.values())
    counts: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type != "DequantizeLinear" and all(value is None or value in constant for value in node.inputs):
            constant.update(node.outputs)
        else:
            counts[node.op_type] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
