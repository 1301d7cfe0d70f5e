"""What a decoder in ONNX reads from memory for one token."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from llmc.runtime.quiet_onnxruntime import onnxruntime


def traffic(path: Path, experts: int, active: int) -> dict[str, float]:
    """`weights`: bytes per token; `cache`: bytes per token that lies in it.

    ONNX Runtime is asked for the graph that it runs, because it folds casts of weights: a bfloat16 weight may be read
    as float32. Of `experts` stacked in one tensor only the `active` ones count, and of an embedding nothing.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(file)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(file, load_external_data=False).graph
    looked_up = {node.input[0] for node in graph.node if node.op_type.startswith("Gather")}
    used = {name for node in graph.node for name in node.input}
    weights = 0.0
    for tensor in graph.initializer:
        if tensor.name in used - looked_up:
            stacked = experts > 1 and len(tensor.dims) > 2 and tensor.dims[0] == experts
            weights += _bytes(tensor.data_type, list(tensor.dims)) * (active / experts if stacked else 1)
    cache = 0.0
    for value in graph.input:
        if value.name.startswith("past"):
            kind = value.type.tensor_type
            cache += _bytes(kind.elem_type, [size.dim_value for size in kind.shape.dim if size.dim_value])
    return {"weights": weights, "cache": cache}


def _bytes(kind: int, shape: list[int]) -> float:
    return math.prod(shape) * ir.DataType(kind).bitwidth / 8
