"""Multi-head latent attention: absorbed over the latent cache when decoding, expanded to heads when prefilling."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.spec import LatentAttentionSpec
from llmc.convert.targets.tensorrt_rtx.phases import Phases


def latent_attention(b: Rewriter, node: ir.Node, spec: LatentAttentionSpec, phases: Phases) -> None:
    """Replace `llmc.LatentAttention`, the product that absorbs the key half of kv_b_proj into its query, and the
    one that takes its output through the value half."""
    query, cached, mask = node.inputs
    absorbed, query_rope = query.producer().inputs
    query_nope, key_weight = absorbed.producer().inputs
    (expand,) = node.outputs[0].consumers()
    value_weight = expand.inputs[1]
    with b.before(expand):
        decode, prefill = zip(*(phases.split(x, 2) for x in (query_nope, query_rope, mask)), strict=True)
        values = (
            _absorbed(b, *decode, cached, key_weight, value_weight, spec),
            _expanded(b, *prefill, cached, key_weight, value_weight, spec),
        )
        b.replace(expand, b.concat(*values, axis=2))


def _absorbed(
    b: Rewriter,
    query_nope: ir.Value,
    query_rope: ir.Value,
    mask: ir.Value,
    cached: ir.Value,
    key_weight: ir.Value,
    value_weight: ir.Value,
    spec: LatentAttentionSpec,
) -> ir.Value:
    """[B, heads, S, v_head_dim]. Heads are rows of one product per sequence, so the cache is read once for all.

    Shapes are computed, not inferred with -1, which no runtime can do for a part without tokens.
    """
    query = b.concat(b.op("MatMul", query_nope, key_weight), query_rope)
    query = b.op("Mul", query, b.cast_like(b.constant(spec.softmax_scale, ir.DataType.FLOAT), query))
    rows = b.op("Mul", b.dimension(query, 2), b.constant([spec.num_heads]))
    heads = b.op("Shape", query, start=0, end=3)
    channels, capacity = b.dimension(cached, 3), b.dimension(cached, 2)

    def as_rows(x: ir.Value, last: ir.Value) -> ir.Value:
        return b.op("Reshape", x, b.concat(b.constant([0, 1]), rows, last))

    def as_heads(x: ir.Value, last: ir.Value) -> ir.Value:
        return b.op("Reshape", x, b.concat(heads, last))

    scores = b.op("MatMul", as_rows(query, channels), b.transpose(cached, 0, 1, 3, 2))
    weights = b.op("Softmax", b.op("Add", as_heads(scores, capacity), mask), axis=-1)
    mixed = as_heads(b.op("MatMul", as_rows(weights, capacity), cached), channels)
    latent, _ = b.split(mixed, spec.kv_lora_rank, spec.qk_rope_head_dim)
    return b.op("MatMul", latent, value_weight)


def _expanded(
    b: Rewriter,
    query_nope: ir.Value,
    query_rope: ir.Value,
    mask: ir.Value,
    cached: ir.Value,
    key_weight: ir.Value,
    value_weight: ir.Value,
    spec: LatentAttentionSpec,
) -> ir.Value:
    """[B, heads, S, v_head_dim]. The cache is expanded to keys and values of every head, which the fused kernel
    wants equally long: values are padded with zeros."""
    length = spec.qk_nope_head_dim + spec.qk_rope_head_dim
    latent, key_rope = b.split(cached, spec.kv_lora_rank, spec.qk_rope_head_dim)
    key_nope = b.op("MatMul", latent, b.transpose(key_weight, 0, 2, 1))
    key_rope = b.op("Expand", key_rope, b.constant([1, spec.num_heads, 1, 1]))
    value = b.op("MatMul", latent, value_weight)
    value = b.op("Pad", value, b.constant([0, 0, 0, 0, 0, 0, 0, length - spec.v_head_dim]))
    mixed = b.op(
        "Attention",
        b.concat(query_nope, query_rope),
        b.concat(key_nope, key_rope),
        value,
        mask,
        scale=spec.softmax_scale,
    )
    value, _ = b.split(mixed, spec.v_head_dim, length - spec.v_head_dim)
    return value
