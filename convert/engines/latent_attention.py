"""Multi-head latent attention: absorbed over the latent cache when decoding, expanded to heads for prompts; by plugins
or, without, by what TensorRT has.

Expanding takes a third of the work for an entry, but each one has to be expanded first, with each step anew: steps of
few tokens are absorbed, too. Plugins read what there is in the cache, whatever it has room for.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.convert.engines.phases import Phases
from llmc.convert.engines.plugins import TYPES, Plugins
from llmc.convert.graph.rewrite import Rewriter, producer
from llmc.convert.kernels.expanded_latent_attention_tiles import MOST_CHANNELS
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.spec import LatentAttentionSpec, ModelSpec
from llmc.runtime.plugins.append_float8 import EntryShape
from llmc.runtime.plugins.latent_attention import LatentShape
from llmc.runtime.plugins.phased_latent_attention import LEAST_EXPANDED, PhasedShape

LEAST_CONTEXT = 2048  # below which attention is a small part of a prompt: more kernels and programs are not worth it


def widest_absorbed(spec: ModelSpec, prefill: int, context: int) -> int | None:
    """Tokens per row of the widest step that plugins compute in absorbed form; None if that is all of them.

    For a token, an entry and a head the absorbed form takes 2 * (2 R + P) FLOPs, the expanded one 2 * (N + P + V), and
    2 * R * (N + V) for an entry and a head besides. Without a cache the absorbed form takes these for a token instead.
    """
    widest = LEAST_EXPANDED
    for attention in dict.fromkeys(each for each in spec.attentions if isinstance(each, LatentAttentionSpec)):
        rank, expanded = attention.kv_lora_rank, attention.qk_nope_head_dim + attention.v_head_dim
        key = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        if 2 * rank <= expanded or max(key, attention.v_head_dim) > MOST_CHANNELS:
            return None
        widest = max(widest, rank * expanded // (2 * rank - expanded))
    has_latent = any(isinstance(each, LatentAttentionSpec) for each in spec.attentions)
    return widest if has_latent and widest < prefill and context >= LEAST_CONTEXT else None


def latent_attention_plugin(
    b: Rewriter,
    node: ir.Node,
    spec: LatentAttentionSpec,
    dtype: ir.DataType,
    plugins: Plugins,
    phases: Phases,
    absorbed: int | None = None,
) -> None:
    """Replace `llmc.LatentAttention` by the plugin of that name, which takes `cache_position` for the mask. If steps of
    more tokens than `absorbed` are to be expanded, replace it and the products around it by
    `llmc.PhasedLatentAttention` and what that needs. A cache of FP8's numbers becomes one of its codes.
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
    if absorbed is None:
        with b.before(node):
            wanted = KernelRequest("LatentAttention", LatentShape(spec.num_heads, rank, rope, kind, float8))
            b.replace(node, plugins.add(b, wanted, query, cached, cache_position, **scales))
        return
    around = _around(b, node, spec, cached)
    attention, nope, rotated = around.attention, around.query_nope, around.query_rope
    sizes = spec.qk_nope_head_dim, rope, spec.v_head_dim
    with b.before(around.end):
        few_nope, few_rotated = phases.split(nope, 1, absorbed)[0], phases.split(rotated, 2, absorbed)[0]
        latent, values = plugins.add_all(
            b,
            KernelRequest("PhasedLatentAttention", PhasedShape(spec.num_heads, rank, *sizes, kind, float8)),
            2,
            attention.query(few_nope, few_rotated),
            cached,
            cache_position,
            nope,
            rotated,
            attention.key_weight,
            attention.value_weight,
            **scales,
        )
        of_few, of_many = attention.value(latent, few_nope), phases.split(values, 1, absorbed)[1]
        b.replace(around.end, b.concat(of_few, of_many, axis=1))


def latent_attention(b: Rewriter, node: ir.Node, spec: LatentAttentionSpec, phases: Phases) -> None:
    """Replace `llmc.LatentAttention` and all between it and the projections before and behind it: the product that
    takes the query through the key half of kv_b_proj, and the one that takes the mixed latents through the value half.
    """
    _, cached, mask = node.inputs
    assert cached and mask
    around = _around(b, node, spec, cached)
    with b.before(around.end):
        split = phases.split(around.query_nope, 1), phases.split(around.query_rope, 2), phases.split(mask, 2)
        decode, prefill = zip(*split, strict=True)
        attention = around.attention
        b.replace(around.end, b.concat(attention.absorbed(*decode), attention.expanded(*prefill), axis=1))


@dataclass(frozen=True)
class _Around:
    """What an absorbed attention's node stands between: the query's two parts, and the node of the heads' values."""

    query_nope: ir.Value  # [B, S, heads, N]
    query_rope: ir.Value  # [B, heads, S, P]
    end: ir.Node
    attention: _Attention


def _around(b: Rewriter, node: ir.Node, spec: LatentAttentionSpec, cached: ir.Value) -> _Around:
    absorbed, query_rope = producer(node.inputs[0]).inputs
    turned, key_weight = _before(absorbed, "Transpose", "Reshape").inputs
    query_nope = _before(turned, "Transpose", "Reshape").outputs[0]
    expand = _behind(node, "Transpose", "Reshape", "MatMul")
    value_weight = expand.inputs[1]
    assert query_rope and key_weight and value_weight
    attention = _Attention(b, spec, cached, key_weight, value_weight)
    return _Around(query_nope, query_rope, _behind(expand, "Transpose", "Reshape"), attention)


def _before(value: ir.Value | None, *op_types: str) -> ir.Node:
    """The node before those, of which the last named is the first to come."""
    for op_type in op_types:
        node = producer(value)
        assert node.op_type == op_type, node
        value = node.inputs[0]
    return producer(value)


def _behind(node: ir.Node, *op_types: str) -> ir.Node:
    """The last of those that follow."""
    for op_type in op_types:
        (node,) = node.outputs[0].consumers()
        assert node.op_type == op_type, node
    return node


@dataclass(frozen=True)
class _Attention:
    """query_nope [B, S, heads, N], query_rope [B, heads, S, P], mask [B, 1, S, T] -> [B, S, heads * V].

    Weights are multiplied heads first, [heads, B * S, N] times [heads, N, R], so that no row has a copy of them.
    """

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
        batch, tokens = b.dimension(query_nope, 0), b.dimension(query_nope, 1)
        count, capacity, channels = b.constant([spec.num_heads]), b.dimension(self.cached, 2), self._channels
        query = self.query(query_nope, query_rope)
        query = b.op("Mul", query, b.cast_like(b.constant(spec.softmax_scale, ir.DataType.FLOAT), query))
        rows = batch, b.constant([1]), b.op("Mul", tokens, count)

        scores = b.op("MatMul", self._reshape(query, *rows, channels), b.transpose(self.cached, 0, 1, 3, 2))
        scores = b.op("Add", self._reshape(scores, batch, count, tokens, capacity), mask)
        weights = b.op("Softmax", scores, axis=-1)
        mixed = b.op("MatMul", self._reshape(weights, *rows, capacity), self.cached)
        mixed = self._reshape(mixed, batch, count, tokens, channels)
        latent, _ = b.split(mixed, spec.kv_lora_rank, spec.qk_rope_head_dim)
        return self.value(latent, query_nope)

    def query(self, query_nope: ir.Value, query_rope: ir.Value) -> ir.Value:
        """[B, heads, S, R + P]: taken through the key half of kv_b_proj."""
        b, spec = self.b, self.spec
        batch, tokens = b.dimension(query_nope, 0), b.dimension(query_nope, 1)
        count, rank = b.constant([spec.num_heads]), b.constant([spec.kv_lora_rank])
        query = self._reshape(query_nope, b.op("Mul", batch, tokens), count, b.constant([spec.qk_nope_head_dim]))
        query = b.op("MatMul", b.transpose(query, 1, 0, 2), self.key_weight)
        return b.concat(b.transpose(self._reshape(query, count, batch, tokens, rank), 1, 0, 2, 3), query_rope)

    def value(self, latent: ir.Value, query_nope: ir.Value) -> ir.Value:
        """Mixed latents [B, heads, S, R], taken through the value half of kv_b_proj. query_nope: for its sizes"""
        b, spec = self.b, self.spec
        batch, tokens = b.dimension(query_nope, 0), b.dimension(query_nope, 1)
        count, rank = b.constant([spec.num_heads]), b.constant([spec.kv_lora_rank])
        latent = self._reshape(b.transpose(latent, 1, 0, 2, 3), count, b.op("Mul", batch, tokens), rank)
        value = b.transpose(b.op("MatMul", latent, self.value_weight), 1, 0, 2)
        return self._reshape(value, batch, tokens, b.constant([spec.num_heads * spec.v_head_dim]))

    def _reshape(self, x: ir.Value, *shape: ir.Value) -> ir.Value:
        return self.b.op("Reshape", x, self.b.concat(*shape), allowzero=1)

    def expanded(self, query_nope: ir.Value, query_rope: ir.Value, mask: ir.Value) -> ir.Value:
        """The fused kernel wants keys and values equally long: the shorter are padded with zeros."""
        b, spec = self.b, self.spec
        channels = spec.qk_nope_head_dim + spec.qk_rope_head_dim
        more, padding = max(0, spec.v_head_dim - channels), max(0, channels - spec.v_head_dim)

        def padded(x: ir.Value, by: int) -> ir.Value:
            return b.op("Pad", x, b.constant([0] * 7 + [by])) if by else x

        latent, key_rope = b.split(self.cached, spec.kv_lora_rank, spec.qk_rope_head_dim)
        key = b.concat(
            self._of_all_heads(latent, b.transpose(self.key_weight, 0, 2, 1), spec.qk_nope_head_dim),
            b.op("Expand", key_rope, b.constant([1, spec.num_heads, 1, 1])),
        )
        value = padded(self._of_all_heads(latent, self.value_weight, spec.v_head_dim), padding)
        query = padded(b.concat(b.transpose(query_nope, 0, 2, 1, 3), query_rope), more)
        mixed = b.op("Attention", query, padded(key, more), value, mask, scale=spec.softmax_scale)
        mixed = b.split(mixed, spec.v_head_dim, padding)[0] if padding else mixed
        lead = b.op("Shape", query_nope, end=2)
        shape = b.concat(lead, b.constant([spec.num_heads * spec.v_head_dim]))
        return b.op("Reshape", b.transpose(mixed, 0, 2, 1, 3), shape, allowzero=1)

    @property
    def _channels(self) -> ir.Value:
        return self.b.constant([self.spec.kv_lora_rank + self.spec.qk_rope_head_dim])

    def _of_all_heads(self, latent: ir.Value, weight: ir.Value, channels: int) -> ir.Value:
        """[B, 1, T, R] times [heads, R, n] -> [B, heads, T, n]."""
        b, heads = self.b, self.spec.num_heads
        product = b.op("MatMul", b.reshape(latent, 1, -1, self.spec.kv_lora_rank), weight)
        batch, capacity = b.dimension(self.cached, 0), b.dimension(self.cached, 2)
        shape = b.concat(b.constant([heads]), batch, capacity, b.constant([channels]))
        return b.transpose(b.op("Reshape", product, shape), 1, 0, 2, 3)
