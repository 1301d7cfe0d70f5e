"""Grouped-query attention over caches that are written in place: com.microsoft GroupQueryAttention."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.rewrite import Rewriter, producer
from llmc.convert.spec import GroupedQueryAttentionSpec


def lower_grouped_query_attention(rewriter: Rewriter, spec: GroupedQueryAttentionSpec) -> None:
    """Attention and the TensorScatter of its key and value become one node that appends to the caches itself.

    It masks by length instead of our mask: after this step row b has cache_position[b] + S entries, S of them
    new. What pads a row on the right counts as new, here as in every target: queries before it do not see it,
    and the next step overwrites it.
    """

    def flat(x: ir.Value | None) -> ir.Value:
        """[B, heads, S, D] -> [B, S, heads * D]"""
        return rewriter.reshape(rewriter.transpose(x, 0, 2, 1, 3), 0, 0, -1)

    lengths: list[ir.Value] = []
    for node in rewriter.nodes("Attention"):
        query, *caches, _ = node.inputs
        writes = [producer(cache) for cache in caches]
        with rewriter.before(node):
            (past_key, key, _), (past_value, value, _) = (write.inputs for write in writes)
            lengths = lengths or _lengths(rewriter, *writes[0].inputs)
            mixed, *presents = rewriter.op(
                "GroupQueryAttention",
                *(flat(query), flat(key), flat(value), past_key, past_value, *lengths[:2]),
                *[None] * 9,  # rotary tables, positions, bias, sink, quantisation, norms
                lengths[2],
                domain="com.microsoft",
                outputs=3,
                num_heads=spec.num_heads,
                kv_num_heads=spec.num_kv_heads,
                scale=spec.softmax_scale,
            )
            mixed = rewriter.reshape(mixed, 0, 0, spec.num_heads, spec.head_dim)
            rewriter.replace(node, rewriter.transpose(mixed, 0, 2, 1, 3))
        for write, present in zip(writes, presents, strict=True):
            rewriter.replace(write, present)


def _lengths(rewriter: Rewriter, *write: ir.Value | None) -> list[ir.Value]:
    """Of each row: entries after this step, less one [B]; their upper bound T; new entries [B]. All int32."""
    past, new, cache_position = write
    new_entries = rewriter.dimension(new, 2)
    last = rewriter.op("Add", cache_position, rewriter.op("Sub", new_entries, rewriter.constant([1])))
    capacity = rewriter.op("Squeeze", rewriter.dimension(past, 2))
    per_row = rewriter.op("Expand", new_entries, rewriter.op("Shape", cache_position))
    return [rewriter.op("Cast", x, to=int(ir.DataType.INT32)) for x in (last, capacity, per_row)]
