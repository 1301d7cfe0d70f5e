"""Grouped-query attention over caches that are written in place: com.microsoft GroupQueryAttention."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from llmc.convert.graph.builder import DOMAIN
from llmc.convert.graph.grouped_query_attention import NAME
from llmc.convert.graph.rewrite import Rewriter, layer_of, producer
from llmc.convert.spec import GroupedQueryAttentionSpec, ModelSpec, RopeSpec

_HEAD_STEP = 8  # channels: the kernel takes heads of any multiple of it


def lower_grouped_query_attention(rewriter: Rewriter, spec: ModelSpec) -> None:
    """Attention, the TensorScatter of its key and value, and the rotations become one node that appends to the
    caches itself.

    It masks by length instead of our mask: after this step row b has cache_position[b] + S entries, S of them
    new. What pads a row on the right counts as new, here as in every target: queries before it do not see it,
    and the next step overwrites it.

    Heads that the kernel refuses, of 100 channels for instance, or with values of another width, keep the standard
    operators.

    In a graph with `attention_mask`, caches grow: its width is how many entries there are after this step.
    """
    lengths: list[ir.Value] = []
    angles: dict[RopeSpec, list[ir.Value]] = {}
    for node in rewriter.nodes("Attention") + rewriter.nodes(NAME, DOMAIN):
        attention = spec.attentions[layer_of(node)]
        assert isinstance(attention, GroupedQueryAttentionSpec)
        if not kernel_takes(attention):
            continue
        rope = attention.rope
        query, *caches, _ = node.inputs[:4]
        writes = [producer(cache) for cache in caches]
        with rewriter.before(node):
            (past_key, key, _), (past_value, value, _) = (write.inputs for write in writes)
            lengths = lengths or _lengths(rewriter, past_key, writes[0].inputs[2])
            # What happens to a query or a key after its rotation happens outside of the node, which then is no place
            # for the rotation, and none for odd sizes.
            rotations = [producer(query), producer(key)]
            turned: list[ir.Value | None] = [None] * 3
            fits = rope is not None and rope.dim % 16 == 0 == attention.head_dim % 16
            if rope and fits and {each.op_type for each in rotations} == {"RotaryEmbedding"}:
                query, key = (rotation.inputs[0] for rotation in rotations)
                angles[rope] = angles.get(rope) or _angles(rewriter, rotations[0], lengths[1])
                turned = [*angles[rope]]
            mixed, *presents = rewriter.op(
                "GroupQueryAttention",
                *_packed([_flat(rewriter, heads) for heads in (query, key, value)]),
                *(past_key, past_value, *lengths[:2], *turned),
                *(None, node.inputs[4] if attention.sinks else None),
                *[None] * 4,  # quantization, norms
                lengths[2],
                domain="com.microsoft",
                outputs=3,
                num_heads=attention.num_heads,
                kv_num_heads=attention.num_kv_heads,
                scale=attention.softmax_scale,
                softcap=attention.softcap or 0.0,
                local_window_size=attention.window or -1,
                do_rotary=int(any(turned)),
                rotary_interleaved=int(rope is not None and rope.interleaved),
            )
            _replace_flattened(rewriter, node, mixed)
        for write, present in zip(writes, presents, strict=True):
            rewriter.replace(write, present)


def kernel_takes(attention: GroupedQueryAttentionSpec) -> bool:
    """Whether the kernel has heads of this size."""
    return attention.head_dim % _HEAD_STEP == 0 and attention.value_size == attention.head_dim


def _flat(rewriter: Rewriter, x: ir.Value | None) -> ir.Value:
    """[B, heads, S, D] -> [B, S, heads * D]; what was cut into heads, if nothing happened to it since."""
    transpose = producer(x)
    if transpose.op_type == "Transpose":
        if producer(transpose.inputs[0]).op_type != "Reshape":  # a norm of each head
            return rewriter.reshape(transpose.inputs[0], 0, 0, -1)
        (flat, _) = producer(transpose.inputs[0]).inputs
        assert flat is not None
        return flat
    return rewriter.reshape(rewriter.transpose(x, 0, 2, 1, 3), 0, 0, -1)


def _packed(inputs: Sequence[ir.Value]) -> Sequence[ir.Value | None]:
    """Query, key and value; or, if they are all that a Split makes of one value, that value alone."""
    split = inputs[0].producer()
    if split is not None and split.op_type == "Split" and tuple(split.outputs) == tuple(inputs):
        return [split.inputs[0], None, None]
    return inputs


def _replace_flattened(rewriter: Rewriter, node: ir.Node, mixed: ir.Value) -> None:
    """`mixed` [B, S, heads * D] for what the graph makes of the attention's [B, heads, S, D] by two nodes."""
    (transpose,) = node.outputs[0].consumers()
    (reshape,) = transpose.outputs[0].consumers()
    rewriter.replace(reshape, mixed)
    rewriter.graph.remove([transpose, node], safe=True)


def _lengths(rewriter: Rewriter, past: ir.Value | None, cache_position: ir.Value | None) -> list[ir.Value]:
    """Of each row: entries after this step, less one [B]; their upper bound T; new entries [B]. All int32."""
    inputs = {value.name: value for value in rewriter.graph.inputs}
    new_entries = rewriter.dimension(inputs["position_ids"], 1)
    last = rewriter.op("Add", cache_position, rewriter.op("Sub", new_entries, rewriter.constant([1])))
    mask = inputs.get("attention_mask")
    capacity = rewriter.op("Squeeze", rewriter.dimension(past, 2) if mask is None else rewriter.dimension(mask, 1))
    per_row = rewriter.op("Expand", new_entries, rewriter.op("Shape", cache_position))
    return [rewriter.op("Cast", x, to=int(ir.DataType.INT32)) for x in (last, capacity, per_row)]


def _angles(rewriter: Rewriter, rotation: ir.Node, capacity: ir.Value) -> list[ir.Value]:
    """Cosines and sines as tables [>= T, dim / 2], and which of their rows each token wants [B, S].

    The node means tables of all positions, which would take 64 MB for 128 K of them. It is given those of this
    step's tokens [B, S, dim / 2] one below the other, and zeros up to the length that it insists on.
    """
    _, cos, sin = rotation.inputs
    batch_and_length = rewriter.op("Shape", cos, end=2)
    count = rewriter.op("ReduceProd", batch_and_length, keepdims=1)
    rows = rewriter.op("Reshape", rewriter.arange(count), batch_and_length)
    missing = rewriter.op("Sub", rewriter.op("Cast", capacity, to=int(ir.DataType.INT64)), count)
    missing = rewriter.op("Max", missing, rewriter.constant([0]))
    zero = rewriter.constant([0])
    pads = rewriter.concat(zero, zero, missing, zero)
    tables = [rewriter.op("Pad", rewriter.op("Flatten", x, axis=2), pads) for x in (cos, sin)]
    return [*tables, rows]
