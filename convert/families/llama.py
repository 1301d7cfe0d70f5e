"""Llama 2 and 3 and what shares their architecture: grouped-query attention and SwiGLU."""

from __future__ import annotations

from typing import Any

from llmc.convert.families.family import Family, Published
from llmc.convert.families.rope import rope_spec
from llmc.convert.fields import Fields
from llmc.convert.spec import DenseMLPSpec, GroupedQueryAttentionSpec, ModelSpec
from llmc.errors import InputError


class Llama(Family):
    name = "llama"
    architectures = ("LlamaForCausalLM",)
    max_positions = 2048  # where config.json does not say
    num_kv_heads: int | None = None  # likewise; None: as many as there are heads

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        """Whether (query, key, value) and (output) projections have a bias."""
        bias = fields.boolean("attention_bias", False)
        return bias, bias

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields = Published(config)
        self.refuse_windows(fields)
        fields.require("hidden_act", "silu", "the MLP is SwiGLU")
        fields.require("mlp_bias", False, "MLP projections have no bias")
        hidden_size, num_layers = fields.integer("hidden_size"), fields.count("num_hidden_layers")
        num_heads = fields.integer("num_attention_heads")
        num_kv_heads = num_heads  # also where it is null
        if config.get("num_key_value_heads", self.num_kv_heads) is not None:
            num_kv_heads = fields.integer("num_key_value_heads", self.num_kv_heads)
        if num_heads % num_kv_heads:
            raise InputError(
                f"`num_attention_heads` {num_heads} is no multiple of `num_key_value_heads` {num_kv_heads}"
            )
        head_dim = Fields(config).count("head_dim", hidden_size // num_heads)  # null: as absent
        if head_dim % 2:
            raise InputError(f"`head_dim` must be even, not {head_dim}")
        max_positions = fields.integer("max_position_embeddings", self.max_positions)
        qkv_bias, output_bias = self.biases(fields)
        attention = GroupedQueryAttentionSpec(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            softmax_scale=head_dim**-0.5,
            rope=rope_spec(config, head_dim, interleaved=False, max_positions=max_positions),
        )
        return ModelSpec(
            family=self.name,
            hidden_size=hidden_size,
            vocab_size=fields.integer("vocab_size"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            attentions=(attention,) * num_layers,
            mlps=(DenseMLPSpec(fields.integer("intermediate_size")),) * num_layers,
            num_layers=num_layers,
            num_mtp_layers=0,
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            max_position_embeddings=max_positions,
            bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
            eos_token_ids=fields.token_ids("eos_token_id"),
        )


FAMILY = Llama()
