"""A linear layer; its inputs, and what a cache holds, may be rounded to E4M3 by the way."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import FunctionBuilder, GraphBuilder
from llmc.convert.graph.weight import WeightView
from llmc.convert.quantized_weight import FP8_GROUP, LARGEST_FP8, Activations

_FLOAT, _FLOAT8 = ir.DataType.FLOAT, int(ir.DataType.FLOAT8E4M3FN)


def round_activations_function() -> ir.Function:
    """`llmc.RoundActivations`: x [..., n] -> the same, each row, or each `group_size` channels of it if that is not 0,
    divided by what makes its largest magnitude 448, rounded to E4M3 and multiplied again.
    """
    b = FunctionBuilder("RoundActivations", ["x"], {"group_size": ir.AttributeType.INT})
    (x,) = b.inputs
    first, last = b.constant([0]), b.constant([-1])
    size = b.op("Unsqueeze", b.attribute("group_size"), first)
    size = b.op("Where", b.op("Equal", size, first), b.op("Shape", x, start=-1), size)
    parts = b.op("Reshape", x, b.concat(b.op("Shape", x, end=-1), last, size, axis=0))
    parts = b.op("Cast", parts, to=int(_FLOAT))
    largest = b.op("ReduceMax", b.op("Abs", parts), last, keepdims=1)
    scale = b.op("Div", largest, b.constant(LARGEST_FP8, _FLOAT))
    scale = b.op("Where", b.op("Equal", largest, b.constant(0.0, _FLOAT)), b.constant(1.0, _FLOAT), scale)
    codes = b.op("Cast", b.op("Div", parts, scale), to=_FLOAT8)
    rounded = b.op("Mul", b.op("Cast", codes, to=int(_FLOAT)), scale)
    return b.function(b.cast_like(b.op("Reshape", rounded, b.op("Shape", x)), x))


def linear(b: GraphBuilder, x: ir.Value, module: str) -> ir.Value:
    """[..., in] -> [..., out], with the bias if the checkpoint has one."""
    activations = b.checkpoint.activations(module)
    if activations is not None:
        x = _rounded(b, x, activations)
    y: ir.Value = b.op("MatMul", x, b.weight(f"{module}.weight", WeightView()))
    if f"{module}.bias" in b.checkpoint:
        y = b.op("Add", y, b.weight(f"{module}.bias", WeightView()))
    return y


def round_by(b: GraphBuilder, x: ir.Value, scale: float) -> ir.Value:
    """X -> the same, by one scale."""
    by = b.constant(scale, _FLOAT)
    codes = b.op("QuantizeLinear", x, by, output_dtype=_FLOAT8)
    rounded: ir.Value = b.op("DequantizeLinear", codes, by, output_dtype=int(b.dtype))
    return rounded


def _rounded(b: GraphBuilder, x: ir.Value, activations: Activations) -> ir.Value:
    if activations.scale is not None:
        return round_by(b, x, activations.scale)
    group_size = FP8_GROUP if activations.per == "group" else 0
    rounded: ir.Value = b.call(round_activations_function(), x, group_size=group_size)
    return rounded
