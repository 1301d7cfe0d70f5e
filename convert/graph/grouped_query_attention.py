"""Grouped-query attention, GQA (Ainslie et al. 2023)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import FunctionBuilder, GraphBuilder
from llmc.convert.graph.linear import linear
from llmc.convert.graph.rms_norm import rms_norm
from llmc.convert.graph.rotary import rotary
from llmc.convert.graph.step import StepInputs
from llmc.convert.graph.weight import WeightView
from llmc.convert.spec import GroupedQueryAttentionSpec, NormSpec

NAME = "GroupedQueryAttention"


def grouped_query_attention_function(spec: GroupedQueryAttentionSpec) -> ir.Function:
    """`llmc.GroupedQueryAttention`: query [B, Hq, S, D], key, value [B, G, T, …], mask [B, 1, S, T] and, where there
    are some, sinks [Hq] -> [B, Hq, S, …].

    It is for what not every target's Attention has: scores that are capped, and a score of each head for nothing.
    All layers of a model do it alike, so the body is that model's.
    """
    names = ["query", "key", "value", "mask"] + ["sinks"] * spec.sinks
    b = FunctionBuilder(NAME, names, {"scale": ir.AttributeType.FLOAT, "softcap": ir.AttributeType.FLOAT})
    query, key, value, mask, *sinks = b.inputs
    groups, channels, rest = b.dimension(key, 1), b.dimension(query, 3), b.constant([-1])
    to_groups = b.concat(b.constant([0]), groups, rest, channels, axis=0)
    heads = b.op("Shape", query, end=3)
    scaled = b.op("Mul", query, b.cast_like(b.attribute("scale"), query))
    scores = b.op("MatMul", b.op("Reshape", scaled, to_groups), b.transpose(key, 0, 1, 3, 2))
    if spec.softcap is not None:
        cap = b.cast_like(b.attribute("softcap"), query)
        scores = b.op("Mul", b.op("Tanh", b.op("Div", scores, cap)), cap)
    scores = b.op("Add", b.op("Reshape", scores, b.concat(heads, rest, axis=0)), mask)
    if sinks:
        one = b.op("Reshape", sinks[0], b.constant([1, -1, 1, 1]))
        scores = b.concat(scores, b.op("Expand", one, b.concat(heads, b.constant([1]), axis=0)))
    weights = b.op("Softmax", scores, axis=-1)
    if sinks:
        weights = b.op("Slice", weights, b.constant([0]), b.dimension(key, 2), b.constant([3]))
    to_rows = b.concat(b.constant([0]), groups, rest, b.dimension(key, 2), axis=0)
    mixed = b.op("MatMul", b.op("Reshape", weights, to_rows), value)
    return b.function(b.op("Reshape", mixed, b.concat(heads, rest, axis=0)))


def grouped_query_attention(
    b: GraphBuilder, x: ir.Value, path: str, spec: GroupedQueryAttentionSpec, layer: int, step: StepInputs
) -> ir.Value:
    """[B, S, H] -> [B, S, H]; the cache holds rotated keys."""
    norms = {name: norm for name, norm in spec.modules(b.spec.hidden_size).items() if isinstance(norm, NormSpec)}

    def heads(name: str, count: int, channels: int = spec.head_dim) -> ir.Value:
        projected, norm = linear(b, x, f"{path}.{name}_proj"), norms.get(f"{name}_norm")
        if norm and norm.size == count * spec.head_dim:
            projected, norm = rms_norm(b, projected, f"{path}.{name}_norm", norm), None
        projected = b.reshape(projected, 0, 0, count, channels)
        if norm:
            projected = rms_norm(b, projected, f"{path}.{name}_norm", norm)
        return b.transpose(projected, 0, 2, 1, 3)

    with b.at(path):
        query, key = heads("q", spec.num_heads), heads("k", spec.num_kv_heads)
        if spec.rope is not None:
            query, key = (rotary(b, each, spec.head_dim, spec.rope, step.angles) for each in (query, key))
        if spec.query_scaling is not None:
            query = b.op("Mul", query, step.query_scales[spec.query_scaling])
        key = step.append(b, layer, "key", key)
        value = heads("v", spec.num_kv_heads, spec.value_size)
        if spec.value_scale != 1:
            value = b.op("Mul", value, b.constant(spec.value_scale, b.dtype))
        value = step.append(b, layer, "value", value)
        inputs = query, key, value, step.masks[spec.window]
        if spec.softcap is None and not spec.sinks:
            mixed = b.op("Attention", *inputs, scale=spec.softmax_scale)
        else:
            sinks = [b.weight(f"{path}.sinks.weight", WeightView())] if spec.sinks else []
            function, capped = grouped_query_attention_function(spec), spec.softcap or 0.0
            mixed = b.call(function, *inputs, *sinks, scale=spec.softmax_scale, softcap=capped)
        mixed = b.reshape(b.transpose(mixed, 0, 2, 1, 3), 0, 0, spec.output_size)
        return linear(b, mixed, f"{path}.o_proj")
