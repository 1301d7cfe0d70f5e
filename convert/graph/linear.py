"""A linear layer; its inputs may be rounded to E4M3 or E2M1 by the way, and what a cache holds to E4M3."""

from __future__ import annotations

import math

import onnx_ir as ir

from llmc.convert.bits import LARGEST_E2M1
from llmc.convert.graph.builder import FunctionBuilder, GraphBuilder
from llmc.convert.graph.weight import WeightView
from llmc.convert.quantized_weight import (
    FP8_GROUP,
    LARGEST_EXPONENT,
    LARGEST_FP8,
    MXFP4_GROUP,
    NVFP4_GROUP,
    Activations,
)

_FLOAT, _FLOAT8 = ir.DataType.FLOAT, int(ir.DataType.FLOAT8E4M3FN)
# Functions whose scales depend on the input.
DYNAMIC_ROUNDING = "RoundActivations", "RoundToNVFP4", "RoundToMXFP4"


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


def round_to_nvfp4_function() -> ir.Function:
    """`llmc.RoundToNVFP4`: x [..., n] -> the same, 16 channels at a time rounded to E2M1; their scale is one of E4M3
    times `scale`.
    """
    b = FunctionBuilder("RoundToNVFP4", ["x"], {"scale": ir.AttributeType.FLOAT})
    (x,), scale, zero = b.inputs, b.attribute("scale"), b.constant(0.0, _FLOAT)
    groups, largest = _grouped(b, x, NVFP4_GROUP)
    scales = b.op("Div", largest, b.op("Mul", scale, b.constant(LARGEST_E2M1, _FLOAT)))
    scales = b.op("Min", scales, b.constant(LARGEST_FP8, _FLOAT))
    scales = b.op("Mul", b.op("Cast", b.op("Cast", scales, to=_FLOAT8), to=int(_FLOAT)), scale)
    divisor = b.op("Where", b.op("Equal", scales, zero), scale, scales)
    rounded = b.op("Mul", _to_e2m1(b, b.op("Div", groups, divisor)), scales)
    return b.function(b.cast_like(b.op("Reshape", rounded, b.op("Shape", x)), x))


def round_to_mxfp4_function() -> ir.Function:
    """`llmc.RoundToMXFP4`: x [..., n] -> the same, 32 channels at a time rounded to E2M1 times a power of two."""
    b = FunctionBuilder("RoundToMXFP4", ["x"], {})
    (x,), half, two = b.inputs, b.constant(0.5, _FLOAT), b.constant(2.0, _FLOAT)
    groups, largest = _grouped(b, x, MXFP4_GROUP)
    largest = b.op("Max", largest, b.constant(2.0**-LARGEST_EXPONENT, _FLOAT))
    # The power of two below; what a logarithm is off by is made good.
    power = b.op("Pow", two, b.op("Floor", b.op("Div", b.op("Log", largest), b.constant(math.log(2), _FLOAT))))
    power = b.op("Where", b.op("Less", largest, power), b.op("Mul", power, half), power)
    power = b.op("Where", b.op("Less", largest, b.op("Mul", power, two)), power, b.op("Mul", power, two))
    clips = b.op("Less", largest, b.op("Mul", power, b.constant(1.75, _FLOAT)))
    scales = b.op("Mul", power, b.op("Where", clips, b.constant(0.25, _FLOAT), half))
    rounded = b.op("Mul", _to_e2m1(b, b.op("Div", groups, scales)), scales)
    return b.function(b.cast_like(b.op("Reshape", rounded, b.op("Shape", x)), x))


def _grouped(b: FunctionBuilder, x: ir.Value, size: int) -> tuple[ir.Value, ir.Value]:
    """X [..., n] as [..., n / size, size] in float32, and the largest magnitudes of groups."""
    last = b.constant([-1])
    groups = b.op("Reshape", x, b.concat(b.op("Shape", x, end=-1), last, b.constant([size]), axis=0))
    groups = b.op("Cast", groups, to=int(_FLOAT))
    return groups, b.op("ReduceMax", b.op("Abs", groups), last, keepdims=1)


def _to_e2m1(b: FunctionBuilder, x: ir.Value) -> ir.Value:
    """The nearest values of E2M1, which lie 0.5 apart below 2, 1 below 4, and 2 up to 6; ties go to the even code."""
    x = b.op("Clip", x, b.constant(-LARGEST_E2M1, _FLOAT), b.constant(LARGEST_E2M1, _FLOAT))
    size, two = b.op("Abs", x), b.constant(2.0, _FLOAT)
    step = b.op("Where", b.op("Less", size, b.constant(4.0, _FLOAT)), b.constant(1.0, _FLOAT), two)
    step = b.op("Where", b.op("Less", size, two), b.constant(0.5, _FLOAT), step)
    return b.op("Mul", b.op("Round", b.op("Div", x, step)), step)


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
    if activations.per == "nvfp4":
        return b.call(round_to_nvfp4_function(), x, scale=activations.scale)
    if activations.per == "mxfp4":
        return b.call(round_to_mxfp4_function(), x)
    if activations.scale is not None:
        return round_by(b, x, activations.scale)
    group_size = FP8_GROUP if activations.per == "group" else 0
    rounded: ir.Value = b.call(round_activations_function(), x, group_size=group_size)
    return rounded
