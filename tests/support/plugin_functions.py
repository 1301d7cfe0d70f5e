"""What the plugins mean, as functions of standard operators in their place: with them ONNX Runtime runs such graphs."""

from __future__ import annotations

import onnx_ir as ir
import torch

from llmc.convert.engines.plugins import Plugins
from llmc.convert.graph.builder import FunctionBuilder
from llmc.convert.graph.grouped_topk import grouped_topk_function
from llmc.convert.graph.step import MASKED
from llmc.convert.spec import (
    Activation,
    ClampedSwiGLU,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    RouterSpec,
)
from llmc.runtime.plugins.grouped_query_attention import GroupedQueryShape
from llmc.runtime.plugins.linear import LinearShape
from llmc.runtime.plugins.mixture_of_experts import CODES, WORDS, ExpertsShape, ExpertWeights

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_STRING, _NUMBER = ir.AttributeType.STRING, ir.AttributeType.FLOAT


def add_plugin_functions(model: ir.Model, spec: ModelSpec, plugins: Plugins) -> None:
    """One function for each operation, which a graph has in one shape only."""
    functions, nodes = [append_float8()], set(model.graph)
    shapes = {each.shape for node, each in plugins._waiting if node in nodes and each.operation == "MixtureOfExperts"}
    functions += [mixture_of_experts(shape) for shape in shapes]
    assert len(shapes) <= 1
    for number, shape in enumerate({each.shape: None for _, each in plugins._waiting if each.operation == "Linear"}):
        # A function has one body, and matrices differ: those of one shape get a name of their own.
        functions.append(linear(shape, f"Linear{number}"))
        for node, each in plugins._waiting:
            if node in nodes and each.operation == "Linear" and each.shape == shape:
                node.op_type = functions[-1].name
    for router in {mlp.router for mlp in spec.mlps if isinstance(mlp, MixtureOfExpertsSpec)}:
        functions.append(grouped_topk_function(router))
        for node in nodes:
            if node.op_type == "GroupedTopK":  # means what it meant before
                node.attributes.clear()
                node.attributes.update(ir.Node("", "", [], routed(router)).attributes)
    shapes_of_heads = {each.shape: None for _, each in plugins._waiting if each.operation == "GroupedQueryAttention"}
    for number, heads in enumerate(shapes_of_heads):
        functions.append(grouped_query_attention(heads, f"GroupedQueryAttention{number}"))
        for node, each in plugins._waiting:
            if node in nodes and each.shape == heads:
                node.op_type = functions[-1].name
    attention = spec.attentions[0]
    if isinstance(attention, LatentAttentionSpec):
        functions += [latent_attention(attention, spec.fp8_cache), phased_latent_attention(attention, spec.fp8_cache)]
    for function in functions:
        if any((node.domain, node.op_type) == (function.domain, function.name) for node in model.graph):
            model.functions[function.identifier()] = function


def routed(router: RouterSpec) -> list[ir.Attr]:
    """The attributes of a node that calls `grouped_topk_function`."""
    integers = {name: getattr(router, name) for name in ("top_k", "num_groups", "top_k_groups")}
    found = [ir.AttrInt64(name, value) for name, value in (integers | {"normalize": int(router.normalize)}).items()]
    found.append(ir.AttrFloat32("scaling_factor", router.scaling_factor))
    return [*found, ir.AttrString("scoring", router.scoring)]


def latent_attention(spec: LatentAttentionSpec, float8: bool) -> ir.Function:
    attributes = {"kernels": _STRING, "scale": _NUMBER} | ({"cache_scale": _NUMBER} if float8 else {})
    b = FunctionBuilder("LatentAttention", ["query", "cache", "cache_position"], attributes)
    query, cache, position = b.inputs
    if float8:
        cache = b.op("Mul", decoded(b, cache), b.attribute("cache_scale"))
    value = b.op("Slice", cache, b.constant([0]), b.constant([spec.kv_lora_rank]), b.constant([3]))
    return b.function(_attended(b, query, cache, value, position))


def phased_latent_attention(spec: LatentAttentionSpec, float8: bool) -> ir.Function:
    """Values are NaN where something is absorbed: nobody may read them."""
    attributes = {"kernels": _STRING, "scale": _NUMBER} | ({"cache_scale": _NUMBER} if float8 else {})
    names = ["absorbed", "cache", "cache_position", "query", "rotated", "key_weight", "value_weight"]
    b = FunctionBuilder("PhasedLatentAttention", names, attributes)
    absorbed, cache, position, query, rotated, key_weight, value_weight = b.inputs
    if float8:
        cache = b.op("Mul", decoded(b, cache), b.attribute("cache_scale"))
    first, rank = b.constant([0]), b.constant([spec.kv_lora_rank])
    latent = b.op("Slice", cache, first, rank, b.constant([3]))
    mixed = _attended(b, absorbed, cache, latent, position)

    rope = b.op("Slice", cache, rank, b.constant([spec.kv_lora_rank + spec.qk_rope_head_dim]), b.constant([3]))
    key = b.concat(
        b.op("MatMul", latent, b.op("Unsqueeze", b.transpose(key_weight, 0, 2, 1), first)),
        b.op("Expand", rope, b.constant([1, spec.num_heads, 1, 1])),
    )
    value = b.op("MatMul", latent, b.op("Unsqueeze", value_weight, first))
    values = _attended(b, b.concat(b.transpose(query, 0, 2, 1, 3), rotated), key, value, position)
    values = b.op("Reshape", b.transpose(values, 0, 2, 1, 3), b.constant([0, 0, -1]))
    some = b.op("Greater", b.dimension(absorbed, 2), first)
    return b.function(mixed, b.op("Where", some, b.constant(float("nan"), FLOAT), values))


def _attended(b: FunctionBuilder, query: ir.Value, key: ir.Value, value: ir.Value, position: ir.Value) -> ir.Value:
    last = b.op("Add", b.op("Unsqueeze", position, b.constant([1])), b.arange(b.dimension(query, 2)))
    seen = b.op("LessOrEqual", b.arange(b.dimension(key, 2)), b.op("Unsqueeze", last, b.constant([1, 3])))
    mask = b.op("Where", seen, b.constant(0.0, FLOAT), b.constant(MASKED, FLOAT))
    scores = b.op("Mul", b.op("MatMul", query, b.transpose(key, 0, 1, 3, 2)), b.attribute("scale"))
    mixed: ir.Value = b.op("MatMul", b.op("Softmax", b.op("Add", scores, mask), axis=-1), value)
    return mixed


def grouped_query_attention(shape: GroupedQueryShape, name: str) -> ir.Function:
    attributes = {"kernels": _STRING, "scale": _NUMBER, "softcap": _NUMBER}
    names = ["query", "key", "value", "position", *["sinks"] * shape.sinks]
    b = FunctionBuilder(name, names, attributes)
    query, key, value, position, *sinks = b.inputs
    grouped = b.op("Reshape", query, b.constant([0, shape.groups, -1, shape.channels]))
    heads = b.concat(b.op("Shape", query, end=3), b.constant([-1]), axis=0)
    scores = b.op("MatMul", grouped, b.transpose(key, 0, 1, 3, 2))
    scores = b.op("Mul", b.op("Reshape", scores, heads), b.attribute("scale"))
    if shape.softcap:
        scores = b.op("Mul", b.op("Tanh", b.op("Div", scores, b.attribute("softcap"))), b.attribute("softcap"))
    entries, last = b.arange(b.dimension(key, 2)), b.arange(b.dimension(query, 2))
    last = b.op("Unsqueeze", b.op("Add", b.op("Unsqueeze", position, b.constant([1])), last), b.constant([1, 3]))
    seen = b.op("LessOrEqual", entries, last)
    if shape.window:
        seen = b.op("And", seen, b.op("Greater", entries, b.op("Sub", last, b.constant(shape.window))))
    scores = b.op("Where", seen, scores, b.constant(MASKED, FLOAT))
    if sinks:
        lead = b.op("Shape", scores, end=3)
        sink = b.op("Reshape", sinks[0], b.constant([1, -1, 1, 1]))
        scores = b.concat(scores, b.op("Expand", sink, b.concat(lead, b.constant([1]), axis=0)))
    weights = b.op("Softmax", scores, axis=-1)
    weights = b.op("Slice", weights, b.constant([0]), b.dimension(key, 2), b.constant([3]))
    rows = b.concat(b.constant([0, shape.groups, -1]), b.dimension(key, 2), axis=0)
    mixed = b.op("MatMul", b.op("Reshape", weights, rows), value)
    return b.function(b.op("Reshape", mixed, heads))


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


def mixture_of_experts(shape: ExpertsShape) -> ir.Function:
    """All experts, of which those not chosen count nothing."""
    of_gate, of_down = (1 if form.form == "plain" else 2 for form in (shape.gate_up, shape.down))
    names = [f"{name}{i}" for name, n in (("gate", of_gate), ("up", of_gate), ("down", of_down)) for i in range(n)]
    names += [f"{name}_bias" for name in ("gate", "up", "down") if shape.bias]
    b = FunctionBuilder("MixtureOfExperts", ["x", "index", "share", *names], {"kernels": _STRING})
    x, index, share, *stacks = b.inputs
    biases = [stacks.pop(-3 + i) for i in range(3)] if shape.bias else []
    gate = unpacked(b, stacks[:of_gate], shape.gate_up, shape.inner, shape.hidden)
    up = unpacked(b, stacks[of_gate : 2 * of_gate], shape.gate_up, shape.inner, shape.hidden)
    down = unpacked(b, stacks[2 * of_gate :], shape.down, shape.hidden, shape.inner)

    def projected(x: ir.Value, weight: ir.Value, number: int) -> ir.Value:
        y: ir.Value = b.op("MatMul", x, weight)
        return b.op("Add", y, b.op("Unsqueeze", biases[number], b.constant([1]))) if biases else y

    last = b.constant([-1])
    chosen = b.op("Equal", b.op("Unsqueeze", index, last), b.constant(range(shape.experts)))
    shares = b.op("Mul", b.op("Cast", chosen, to=FLOAT), b.op("Unsqueeze", share, last))
    shares = b.transpose(b.op("ReduceSum", shares, b.constant([1]), keepdims=0), 1, 0)  # [E, N]
    tokens = b.op("Unsqueeze", x, b.constant([0]))
    activation: Activation = ClampedSwiGLU(shape.alpha, shape.limit) if shape.limit else "silu"
    inner = b.gated(projected(tokens, gate, 0), projected(tokens, up, 1), activation)
    outer = b.op("Mul", projected(inner, down, 2), b.op("Unsqueeze", shares, last))
    return b.function(b.op("ReduceSum", outer, b.constant([0]), keepdims=0))


def linear(shape: LinearShape, name: str = "Linear") -> ir.Function:
    """One product with the matrix decoded."""
    b = FunctionBuilder(name, ["x", "words", "scales", *["bias"] * shape.bias], {"kernels": _STRING})
    x, words, scales, *bias = b.inputs
    weight = unpacked(b, [words, scales], shape.weight, shape.outputs, shape.inputs)
    y = b.op("MatMul", x, b.op("Squeeze", weight, b.constant([0])))
    return b.function(b.op("Add", y, *bias) if bias else y)


def unpacked(b: FunctionBuilder, stack: list[ir.Value], form: ExpertWeights, out: int, columns: int) -> ir.Value:
    """[E, in, out], float"""
    if form.form == "plain":
        return b.transpose(stack[0], 0, 2, 1)
    words, scales = stack
    parts, first, unsigned = CODES[form.form], b.constant([0]), ir.DataType.UINT32
    bits = 32 // parts
    words = b.op("Reshape", b.op("Cast", words, to=unsigned), b.constant([0, out, -1, 1, WORDS]))
    places = b.op("Reshape", b.constant([bits * i for i in range(parts)], unsigned), b.constant([parts, 1]))
    codes = b.op("BitShift", words, places, direction="RIGHT")
    codes = b.op("BitwiseAnd", codes, b.constant((1 << bits) - 1, unsigned))
    codes = b.op("Reshape", codes, b.constant([0, out, -1]))
    codes = b.op("Slice", codes, first, b.constant([columns]), b.constant([2]))
    if form.form == "int4":
        numbers = b.op("Sub", b.op("Cast", codes, to=FLOAT), b.constant(8.0, FLOAT))
    elif form.form == "fp4":
        e2m1 = [sign * size for sign in (1, -1) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
        numbers = b.op("Gather", b.constant(e2m1, FLOAT), b.op("Cast", codes, to=INT64))
    else:
        numbers = decoded(b, b.op("Cast", codes, to=ir.DataType.INT8))
    wide = b.transpose(b.op("Cast", scales, to=FLOAT), 0, 2, 1)  # [E, scaled, groups]
    for axis, (times, size) in ((1, (form.rows, out)), (2, (form.group, columns))):
        index = b.op("Div", b.constant(range(size)), b.constant(times))
        wide = b.op("Gather", wide, index, axis=axis)
    return b.transpose(b.op("Mul", numbers, wide), 0, 2, 1)
