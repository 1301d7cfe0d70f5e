"""Multi-head latent attention: one plugin, absorbed over the latent cache in every step; or, without plugins, absorbed
when decoding and expanded to heads when prefilling.

The plugin reads what there is in the cache, whatever it has room for. Expanding takes a third of the work for an entry,
but for all that there is room for, and with each step anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.convert.engines.phases import Phases
from llmc.convert.engines.plugins import TYPES, Plugins
from llmc.convert.graph.rewrite import Rewriter, producer
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.spec import LatentAttentionSpec
from llmc.runtime.plugins.append_float8 import EntryShape
from llmc.runtime.plugins.latent_attention import LatentShape


def latent_attention_plugin(
    b: Rewriter, node: ir.Node, spec: LatentAttentionSpec, dtype: ir.DataType, plugins: Plugins
) -> None:
    """Replace `llmc.LatentAttention` by the plugin of that name, which takes `cache_position` for the mask. A cache of
    FP8's numbers becomes one of its codes.
    """
    query, cached, _ = node.inputs
    assert query and cached
    append = producer(cached)
    past, entries, cache_position = append.inputs
    assert past and entries and cache_position
    kind, rank, rope = TYPES[dtype], spec.kv_lora_rank, spec.qk_rope_head_dim
    scales = {"scale": spec.softmax_scale}
    rounded = producer(entries)
    if float8 := rounded.op_type == "DequantizeLinear":
        exact, by = producer(rounded.inputs[0]).inputs[0], rounded.inputs[1]
        assert exact and by
        tensor = ir.convenience.get_const_tensor(by)
        assert tensor is not None
        scales["cache_scale"] = float(tensor.numpy())
        with b.before(append):
            wanted = KernelRequest("AppendFloat8", EntryShape(rank + rope, kind))
            cached = plugins.add(b, wanted, past, exact, cache_position, cache_scale=scales["cache_scale"])
        b.replace(append, cached)
        past.type = cached.type = ir.TensorType(ir.DataType.INT8)
    with b.before(node):
        wanted = KernelRequest("LatentAttention", LatentShape(spec.num_heads, rank, rope, kind, float8))
        b.replace(node, plugins.add(b, wanted, query, cached, cache_position, **scales))


def latent_attention(b: Rewriter, node: ir.Node, spec: LatentAttentionSpec, phases: Phases) -> None:
    """Replace `llmc.LatentAttention`, the product before it that takes the query through the key half of
    kv_b_proj, and the one after it that takes the mixed latents through the value half.
    """
    query, cached, mask = node.inputs
    assert query and cached and mask
    absorbed, query_rope = _inputs(query)
    query_nope, key_weight = _inputs(absorbed)
    (expand,) = node.outputs[0].consumers()
    value_weight = expand.inputs[1]
    assert value_weight
    with b.before(expand):
        attention = _Attention(b, spec, cached, key_weight, value_weight)
        decode, prefill = zip(*(phases.split(x, 2) for x in (query_nope, query_rope, mask)), strict=True)
        b.replace(expand, b.concat(attention.absorbed(*decode), attention.expanded(*prefill), axis=2))


def _inputs(value: ir.Value) -> tuple[ir.Value, ...]:
    node = value.producer()
    assert node is not None
    return tuple(x for x in node.inputs if x is not None)


@dataclass(frozen=True)
class _Attention:
    """query_nope [B, heads, S, N], query_rope [B, heads, S, P], mask [B, 1, S, T] -> [B, heads, S, V]."""

    b: Rewriter
    spec: LatentAttentionSpec
    cached: ir.Value  # [B, 1, T, R + P]
    key_weight: ir.Value  # [heads, N, R]
    value_weight: ir.Value  # [heads, R, V]

    def absorbed(self, query_nope: ir.Value, query_rope: ir.Value, mask: ir.Value) -> ir.Value:
        """Heads are rows of one product per sequence, so that the cache is read once for all of them.

        No shape is left to be inferred: that cannot be done for a part that has no tokens.
        """
        b, spec = self.b, self.spec
        query = b.concat(b.op("MatMul", query_nope, self.key_weight), query_rope)
        query = b.op("Mul", query, b.cast_like(b.constant(spec.softmax_scale, ir.DataType.FLOAT), query))
        heads = b.op("Shape", query, start=0, end=3)
        rows = b.op("Mul", b.dimension(query, 2), b.constant([spec.num_heads]))
        rows = b.concat(b.dimension(query, 0), b.constant([1]), rows)
        capacity, channels = b.dimension(self.cached, 2), b.dimension(self.cached, 3)

        def reshape(x: ir.Value, lead: ir.Value, last: ir.Value) -> ir.Value:
            return b.op("Reshape", x, b.concat(lead, last), allowzero=1)

        scores = b.op("MatMul", reshape(query, rows, channels), b.transpose(self.cached, 0, 1, 3, 2))
        weights = b.op("Softmax", b.op("Add", reshape(scores, heads, capacity), mask), axis=-1)
        mixed = b.op("MatMul", reshape(weights, rows, capacity), self.cached)
        latent, _ = b.split(reshape(mixed, heads, channels), spec.kv_lora_rank, spec.qk_rope_head_dim)
        return b.op("MatMul", latent, self.value_weight)

    def expanded(self, query_nope: ir.Value, query_rope: ir.Value, mask: ir.Value) -> ir.Value:
        """The fused kernel wants keys and values equally long: the shorter are padded with zeros."""
        b, spec = self.b, self.spec
        channels = spec.qk_nope_head_dim + spec.qk_rope_head_dim
        more, padding = max(0, spec.v_head_dim - channels), max(0, channels - spec.v_head_dim)

        def padded(x: ir.Value, by: int) -> ir.Value:
            return b.op("Pad", x, b.constant([0] * 7 + [by])) if by else x

        latent, key_rope = b.split(self.cached, spec.kv_lora_rank, spec.qk_rope_head_dim)
        key = b.concat(
            b.op("MatMul", latent, b.transpose(self.key_weight, 0, 2, 1)),
            b.op("Expand", key_rope, b.constant([1, spec.num_heads, 1, 1])),
        )
        value = padded(b.op("MatMul", latent, self.value_weight), padding)
        query = padded(b.concat(query_nope, query_rope), more)
        mixed = b.op("Attention", query, padded(key, more), value, mask, scale=spec.softmax_scale)
        return b.split(mixed, spec.v_head_dim, padding)[0] if padding else mixed
