"""Grouped-query attention, GQA (Ainslie et al. 2023)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.linear import linear
from llmc.convert.graph.rotary import rotary
from llmc.convert.graph.step import StepInputs
from llmc.convert.spec import GroupedQueryAttentionSpec


def grouped_query_attention(
    b: GraphBuilder, x: ir.Value, path: str, spec: GroupedQueryAttentionSpec, layer: int, step: StepInputs
) -> ir.Value:
    """[B, S, H] -> [B, S, H]; the cache holds rotated keys."""

    def heads(projection: str, count: int) -> ir.Value:
        projected = linear(b, x, f"{path}.{projection}")
        return b.transpose(b.reshape(projected, 0, 0, count, spec.head_dim), 0, 2, 1, 3)

    with b.at(path):
        query = rotary(b, heads("q_proj", spec.num_heads), spec.rope, step.angles)
        key = rotary(b, heads("k_proj", spec.num_kv_heads), spec.rope, step.angles)
        key = step.append(b, layer, "key", key)
        value = step.append(b, layer, "value", heads("v_proj", spec.num_kv_heads))
        mixed = b.op("Attention", query, key, value, step.mask, scale=spec.softmax_scale)
        mixed = b.reshape(b.transpose(mixed, 0, 2, 1, 3), 0, 0, spec.num_heads * spec.head_dim)
        return linear(b, mixed, f"{path}.o_proj")
