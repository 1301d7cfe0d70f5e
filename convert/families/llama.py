"""Llama 2 and 3 and what shares their architecture: grouped-query attention and a gated MLP.

What the families after it do otherwise, they say in a method or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmc.convert.families.family import Family, published
from llmc.convert.families.rope import rope_scaling, rope_spec
from llmc.convert.fields import Fields
from llmc.convert.spec import (
    Activation,
    AttentionSpec,
    DenseMLPSpec,
    GroupedQueryAttentionSpec,
    MLPSpec,
    ModelSpec,
    QKNormSpec,
    RopeSpec,
    WiringSpec,
)
from llmc.errors import InputError


class Llama(Family):
    name = "llama"
    architectures = ("LlamaForCausalLM",)
    defaults = published(max_position_embeddings=2048)
    partial_rotary: float | None = None  # share of a head's channels where config.json does not say; None: all, always

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        """Whether (query, key, value) and (output) projections have a bias."""
        bias = fields.boolean("attention_bias", False)
        return bias, bias

    def qk_norm(self, fields: Fields) -> QKNormSpec | None:
        """The norms of queries and keys."""
        return None

    def activation(self, fields: Fields) -> Activation:
        """That of MLPs."""
        fields.require("hidden_act", "silu", "the MLP is SwiGLU")
        return "silu"

    def windows(self, fields: Fields, num_layers: int) -> Sequence[int | None]:
        """How far each layer sees."""
        self.refuse_windows(fields)
        return (None,) * num_layers

    def mtp_layers(self, fields: Fields) -> int:
        return 0

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        fields.require("mlp_bias", False, "MLP projections have no bias")
        dense = DenseMLPSpec(fields.integer("intermediate_size"), self.activation(fields))
        return (dense,) * (num_layers + num_mtp_layers)

    def rope(self, fields: Fields, head_dim: int) -> RopeSpec:
        dim = self.rotary_dim(fields, head_dim)
        positions = fields.integer("max_position_embeddings")
        return rope_spec(fields.config, dim, interleaved=False, max_positions=positions)

    def rotary_dim(self, fields: Fields, head_dim: int) -> int:
        """How many channels of a head are rotated."""
        scaling, _ = rope_scaling(fields.config)
        where = scaling if scaling.has("partial_rotary_factor") else fields
        if self.partial_rotary is None:
            where.require("partial_rotary_factor", 1.0, "all channels of a head are rotated")
            return head_dim
        dim = int(head_dim * where.number("partial_rotary_factor", self.partial_rotary))
        if dim % 2 or not 0 < dim <= head_dim:
            raise InputError(f"`partial_rotary_factor` rotates {dim} of {head_dim} channels; it must be an even number")
        return dim

    def attention(self, fields: Fields) -> GroupedQueryAttentionSpec:
        """That of a layer without a window."""
        num_heads = fields.integer("num_attention_heads")
        num_kv_heads = num_heads  # also where it is null
        if fields.config.get("num_key_value_heads") is not None:
            num_kv_heads = fields.integer("num_key_value_heads")
        if num_heads % num_kv_heads:
            raise InputError(
                f"`num_attention_heads` {num_heads} is no multiple of `num_key_value_heads` {num_kv_heads}"
            )
        width = fields.integer("hidden_size") // num_heads
        head_dim = Fields(fields.config).count("head_dim", width)  # null: as absent
        if head_dim % 2:
            raise InputError(f"`head_dim` must be even, not {head_dim}")
        qkv_bias, output_bias = self.biases(fields)
        return GroupedQueryAttentionSpec(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            softmax_scale=head_dim**-0.5,
            rope=self.rope(fields, head_dim),
            qk_norm=self.qk_norm(fields),
        )

    def attentions(self, fields: Fields, num_layers: int) -> Sequence[AttentionSpec]:
        """Of all layers, MTP layers included."""
        attention, windows = self.attention(fields), self.windows(fields, num_layers)
        alike = {window: replace(attention, window=window) for window in dict.fromkeys(windows)}
        return [alike[window] for window in windows]

    def wiring(self, fields: Fields) -> WiringSpec:
        return WiringSpec()

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields = self.fields(config)
        num_layers, num_mtp_layers = fields.count("num_hidden_layers"), self.mtp_layers(fields)
        return ModelSpec(
            family=self.name,
            hidden_size=fields.integer("hidden_size"),
            vocab_size=fields.integer("vocab_size"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            attentions=tuple(self.attentions(fields, num_layers + num_mtp_layers)),
            mlps=tuple(self.mlps(fields, num_layers, num_mtp_layers)),
            num_layers=num_layers,
            num_mtp_layers=num_mtp_layers,
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
            eos_token_ids=fields.token_ids("eos_token_id"),
            wiring=self.wiring(fields),
        )


FAMILY = Llama()
