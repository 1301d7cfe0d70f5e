"""What the plugins mean, as functions of standard operators in their place: with them ONNX Runtime runs such graphs."""

from __future__ import annotations

import onnx_ir as ir
import torch

from llmc.convert.graph.builder import FunctionBuilder
from llmc.convert.graph.step import MASKED
from llmc.convert.spec import LatentAttentionSpec, ModelSpec

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_STRING, _NUMBER = ir.AttributeType.STRING, ir.AttributeType.FLOAT


def add_plugin_functions(model: ir.Model, spec: ModelSpec) -> None:
    functions = [append_float8()]
    if isinstance(spec.attention, LatentAttentionSpec):
        functions.append(latent_attention(spec.attention, spec.fp8_cache))
    for function in functions:
        if any((node.domain, node.op_type) == (function.domain, function.name) for node in model.graph):
            model.functions[function.identifier()] = function


def latent_attention(spec: LatentAttentionSpec, float8: bool) -> ir.Function:
    attributes = {"kernels": _STRING, "scale": _NUMBER} | ({"cache_scale": _NUMBER} if float8 else {})
    b = FunctionBuilder("LatentAttention", ["query", "cache", "cache_position"], attributes)
    query, cache, position = b.inputs
    if float8:
        cache = b.op("Mul", decoded(b, cache), b.attribute("cache_scale"))
    last = b.op("Add", b.op("Unsqueeze", position, b.constant([1])), b.arange(b.dimension(query, 2)))
    seen = b.op("LessOrEqual", b.arange(b.dimension(cache, 2)), b.op("Unsqueeze", last, b.constant([1, 3])))
    mask = b.op("Where", seen, b.constant(0.0, FLOAT), b.constant(MASKED, FLOAT))
    scores = b.op("Mul", b.op("MatMul", query, b.transpose(cache, 0, 1, 3, 2)), b.attribute("scale"))
    weights = b.op("Softmax", b.op("Add", scores, mask), axis=-1)
    value = b.op("Slice", cache, b.constant([0]), b.constant([spec.kv_lora_rank]), b.constant([3]))
    return b.function(b.op("MatMul", weights, value))


def append_float8() -> ir.Function:
    b = FunctionBuilder("AppendFloat8", ["cache", "entries", "position"], {"kernels": _STRING, "cache_scale": _NUMBER})
    cache, entries, position = b.inputs
    number = b.op("Unsqueeze", b.op("Div", entries, b.attribute("cache_scale")), b.constant([-1]))
    off = b.op("Abs", b.op("Sub", number, b.constant(finite().tolist(), FLOAT)))
    code = b.op("ArgMin", off, axis=-1, keepdims=0)
    # ONNX Runtime writes floats alone. Code 128 + n is the negative of n, and n - 128 as int8.
    code = b.op("Where", b.op("Less", code, b.constant(127)), code, b.op("Sub", code, b.constant(127 + 128)))
    written = b.op("TensorScatter", b.op("Cast", cache, to=FLOAT), b.op("Cast", code, to=FLOAT), position, axis=2)
    return b.function(b.op("Cast", written, to=ir.DataType.INT8))


def finite() -> torch.Tensor:
    """The numbers of the codes 0 to 126 and 128 to 254."""
    codes = torch.tensor([*range(127), *range(128, 255)], dtype=torch.uint8)
    return codes.view(torch.float8_e4m3fn).float()


def decoded(b: FunctionBuilder, codes: ir.Value) -> ir.Value:
    """int8 → float"""
    numbers = torch.arange(-128, 128, dtype=torch.int8).view(torch.float8_e4m3fn).float().nan_to_num(0)
    table = b.constant(numbers.tolist(), FLOAT)
    place: ir.Value = b.op("Add", b.op("Cast", codes, to=INT64), b.constant(128))
    found: ir.Value = b.op("Gather", table, place)
    return found
