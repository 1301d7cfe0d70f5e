"""Rotary position embedding (RoFormer, Su et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.spec import RopeSpec

Angles = tuple[ir.Value, ir.Value]  # cosine and sine


def rotary_angles(b: GraphBuilder, position_ids: ir.Value, rope: RopeSpec) -> Angles:
    """Cosine and sine [B, S, dim / 2] of every position's angles, computed in float32."""
    positions = b.op("Unsqueeze", b.op("Cast", position_ids, to=int(ir.DataType.FLOAT)), b.constant([-1]))
    frequencies = b.constant(rope.inverse_frequencies, ir.DataType.FLOAT)
    if rope.long is not None:  # [B, 1, dim / 2]
        largest = b.op("Unsqueeze", b.op("ReduceMax", position_ids, b.constant([1]), keepdims=1), b.constant([-1]))
        beyond = b.op("GreaterOrEqual", largest, b.constant([rope.long.length]))
        long = b.constant(rope.long.inverse_frequencies, ir.DataType.FLOAT)
        frequencies = b.op("Where", beyond, long, frequencies)
    angles = b.op("Mul", positions, frequencies)
    factor = b.constant(rope.attention_factor, ir.DataType.FLOAT)
    cos, sin = (b.op("Mul", b.op(op, angles), factor) for op in ("Cos", "Sin"))
    return b.cast(cos, b.dtype, ir.DataType.FLOAT), b.cast(sin, b.dtype, ir.DataType.FLOAT)


def rotary(b: GraphBuilder, x: ir.Value, channels: int, rope: RopeSpec, angles: Mapping[RopeSpec, Angles]) -> ir.Value:
    """[B, heads, S, D] -> [B, heads, S, D], of which the first `rope.dim` channels are rotated.

    Interleaved pairs stay interleaved, where transformers' DeepSeek gathers them into halves: the same
    permutation of query and key, invisible in their product.
    """
    dim = 0 if rope.dim == channels else rope.dim  # 0: all of them
    return b.op("RotaryEmbedding", x, *angles[rope], interleaved=int(rope.interleaved), rotary_embedding_dim=dim)
