"""Qwen3-Next: Gated DeltaNet in three of four layers, attention with an output gate in the others, and a shared expert
with a gate of its own.

Its layer for multi-token prediction is kept as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmc.convert.families.family import kinds_of, published
from llmc.convert.families.qwen3_moe import Qwen3Moe
from llmc.convert.fields import Fields
from llmc.convert.spec import (
    AttentionSpec,
    GatedDeltaNetSpec,
    GroupedQueryAttentionSpec,
    MixtureOfExpertsSpec,
    QKNormSpec,
    Role,
    WiringSpec,
)
from llmc.convert.stored_names import StoredNames
from llmc.errors import InputError

MTP = "mtp."
KEPT_MTP = "its layer for multi-token prediction (mtp.*) is kept bit for bit; pruned models do not draft with it"
_PROJECTIONS = ("qkvz", "ba", "qkv", "z", "b", "a")
_SAME = (*(f"in_proj_{each}" for each in _PROJECTIONS), "out_proj", "conv1d", "norm")
NAMES = StoredNames(
    renamed=(
        *((f"linear_attn.{name}", f"self_attn.{name}") for name in _SAME),
        *((f"linear_attn.{name}", f"self_attn.{name}.weight") for name in ("A_log", "dt_bias")),
        ("mlp.shared_expert", "mlp.shared_experts"),
    ),
    kept=(MTP,),
)
# Of Qwen3-Next and what followed it.
HYBRID = published(
    max_position_embeddings=32768,
    head_dim=256,
    full_attention_interval=4,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
)


def hybrid_attentions(
    fields: Fields, num_layers: int, attention: GroupedQueryAttentionSpec, fused: bool
) -> list[AttentionSpec]:
    """Of all layers: as `layer_types` says, or attention in the last of every `full_attention_interval`."""
    key_heads, value_heads = (fields.count(f"linear_num_{each}_heads") for each in ("key", "value"))
    if value_heads % key_heads:
        raise InputError(f"`linear_num_value_heads` {value_heads} is no multiple of `linear_num_key_heads` {key_heads}")
    linear = GatedDeltaNetSpec(
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_dim=fields.count("linear_key_head_dim"),
        value_dim=fields.count("linear_value_head_dim"),
        conv_width=fields.count("linear_conv_kernel_dim"),
        fused=fused,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
    )
    kinds: dict[str, AttentionSpec] = {"full_attention": replace(attention, output_gate=True)}
    kinds["linear_attention"] = linear
    interval = fields.count("full_attention_interval")
    named = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(num_layers)]
    return [kinds[kind] for kind in kinds_of(fields, named, num_layers, [*kinds])]


class Qwen3Next(Qwen3Moe):
    name = "qwen3_next"
    architectures = ("Qwen3NextForCausalLM",)
    defaults = published(
        HYBRID,
        num_key_value_heads=2,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        norm_topk_prob=True,
        rms_norm_eps=1e-6,
    )
    partial_rotary = 0.25
    stored_names = NAMES
    kept_role: Role = "mtp"
    fused = True  # projections of Gated DeltaNet, see `GatedDeltaNetSpec`

    def qk_norm(self, fields: Fields) -> QKNormSpec:
        return replace(super().qk_norm(fields), unit_offset=True)

    def wiring(self, fields: Fields) -> WiringSpec:
        return WiringSpec(unit_offset=True)

    def attentions(self, fields: Fields, num_layers: int) -> Sequence[AttentionSpec]:
        fields.require("use_sliding_window", False, "attention sees the whole text")
        fields.require("attn_output_gate", True, "attention has an output gate")
        return hybrid_attentions(fields, num_layers, self.attention(fields), self.fused)

    def experts(self, fields: Fields) -> MixtureOfExpertsSpec:
        shared = fields.integer("shared_expert_intermediate_size")
        return replace(super().experts(fields), shared_intermediate_size=shared, shared_gate=True)

    def notes(self, config: dict[str, Any]) -> list[str]:
        return [KEPT_MTP, *super().notes(config)]

    def pruned_config(self, config: dict[str, Any], num_experts: int) -> dict[str, Any]:
        return without_mtp(super().pruned_config(config, num_experts))


def without_mtp(config: dict[str, Any]) -> dict[str, Any]:
    """A pruned model's layer for multi-token prediction keeps its experts, which the config cannot say: it is not to be
    used.
    """
    counts = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
    return config | {name: 0 for name in counts if config.get(name)}


FAMILY = Qwen3Next()
