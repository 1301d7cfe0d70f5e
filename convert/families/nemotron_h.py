"""Nemotron-H and Nemotron-3: layers of one block each, Mamba-2, attention without rotation, an MLP or experts.

MLPs are not gated; experts of the larger ones compute in fewer channels than the model has (LatentMoE). Layers for
multi-token prediction are kept as they are.
"""

from __future__ import annotations

from typing import Any

from llmc.convert.families.family import Family, published
from llmc.convert.fields import Fields
from llmc.convert.spec import (
    AbsentSpec,
    AttentionSpec,
    DenseMLPSpec,
    GroupedQueryAttentionSpec,
    Mamba2Spec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    Role,
    RouterSpec,
)
from llmc.convert.stored_names import StoredNames
from llmc.errors import InputError

_PATTERN = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
_OTHER_NAMES = {"linear_attention": "mamba", "full_attention": "attention"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MAMBA = ("in_proj", "out_proj", "conv1d", "norm")
_MLP = ("up_proj", "down_proj", "gate", "experts", "shared_experts", "fc1_latent_proj", "fc2_latent_proj")


class NemotronH(Family):
    name = "nemotron_h"
    architectures = ("NemotronHForCausalLM",)
    defaults = published(
        max_position_embeddings=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=21504,
        layer_norm_epsilon=1e-5,
        ssm_state_size=128,
        mamba_num_heads=128,
        mamba_head_dim=64,
        n_groups=8,
        conv_kernel=4,
        time_step_min=0.001,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=7688,
        moe_shared_expert_intermediate_size=7688,
        routed_scaling_factor=1.0,
        n_group=1,
        topk_group=1,
    )
    expert_count = "n_routed_experts"
    kept_role: Role = "mtp"
    stored_names = StoredNames(
        renamed=(
            *((f"mixer.{name}", f"self_attn.{name}") for name in (*_ATTENTION, *_MAMBA)),
            *((f"mixer.{name}", f"self_attn.{name}.weight") for name in ("A_log", "D", "dt_bias")),
            *((f"mixer.{name}", f"mlp.{name}") for name in _MLP),
        ),
        prefixes=(
            (
                ("backbone.embeddings.", "model.embed_tokens."),
                ("backbone.norm_f.", "model.norm."),
                ("backbone.", "model."),
            ),
        ),
        kept=("mtp.",),
    )

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields = self.fields(config)
        fields.require("mlp_hidden_act", "relu2", "MLPs square what is positive")
        fields.require("mamba_hidden_act", "silu", "what is convolved goes through SiLU")
        fields.require("mlp_bias", False, "MLP projections have no bias")
        fields.require("attention_bias", False, "attention projections have no bias")
        kinds = self.kinds(fields)
        made: dict[str, AttentionSpec | MLPSpec] = {
            kind: getattr(self, f"_{kind}")(fields) for kind in dict.fromkeys(kinds)
        }
        absent = AbsentSpec()
        attentions = [made[kind] if kind in ("mamba", "attention") else absent for kind in kinds]
        mlps = [made[kind] if kind in ("mlp", "moe") else absent for kind in kinds]
        return ModelSpec(
            family=self.name,
            hidden_size=fields.integer("hidden_size"),
            vocab_size=fields.integer("vocab_size"),
            rms_norm_eps=fields.number("layer_norm_epsilon"),
            attentions=tuple(attentions),  # type: ignore[arg-type]  # of the right kind
            mlps=tuple(mlps),  # type: ignore[arg-type]
            num_layers=len(kinds),
            num_mtp_layers=0,
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
            eos_token_ids=fields.token_ids("eos_token_id"),
        )

    def kinds(self, fields: Fields) -> list[str]:
        """Of all layers: `layers_block_type`, or a letter for each in `hybrid_override_pattern`."""
        if fields.has("layers_block_type"):
            kinds = [_OTHER_NAMES.get(kind, kind) for kind in fields.strings("layers_block_type")]
        elif isinstance(pattern := fields.config.get("hybrid_override_pattern"), str):
            kinds = [_PATTERN.get(letter, letter) for letter in pattern]
        else:
            raise InputError("`layers_block_type`, or `hybrid_override_pattern`, is missing: what each layer is")
        for layer, kind in enumerate(kinds):
            if kind not in _PATTERN.values():
                raise InputError(f"layer {layer} is to be {kind!r}; supported: {', '.join(_PATTERN.values())}")
        if fields.has("num_hidden_layers") and fields.count("num_hidden_layers") != len(kinds):
            raise InputError(
                f"`num_hidden_layers` is {fields.count('num_hidden_layers')}, and {len(kinds)} layers are described"
            )
        if not 0 < len(kinds) <= 10_000:
            raise InputError(f"a model of {len(kinds)} layers is not read")
        return kinds

    def _mamba(self, fields: Fields) -> Mamba2Spec:
        heads, groups = fields.count("mamba_num_heads"), fields.count("n_groups")
        if heads % groups:
            raise InputError(f"`mamba_num_heads` {heads} is no multiple of `n_groups` {groups}")
        return Mamba2Spec(
            num_heads=heads,
            head_dim=fields.count("mamba_head_dim"),
            key_dim=fields.count("ssm_state_size"),
            num_groups=groups,
            conv_width=fields.count("conv_kernel"),
            bias=fields.boolean("use_bias", False),
            conv_bias=fields.boolean("use_conv_bias", True),
            least_step=fields.number("time_step_min"),
            norm_eps=fields.number("layer_norm_epsilon"),
        )

    def _attention(self, fields: Fields) -> GroupedQueryAttentionSpec:
        num_heads, num_kv_heads = (fields.count(f"num_{each}_heads") for each in ("attention", "key_value"))
        head_dim = fields.count("head_dim")
        fields.require("attention_head_dim", head_dim, "heads are as wide as `head_dim` says")
        if num_heads % num_kv_heads:
            raise InputError(
                f"`num_attention_heads` {num_heads} is no multiple of `num_key_value_heads` {num_kv_heads}"
            )
        return GroupedQueryAttentionSpec(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            qkv_bias=False,
            output_bias=False,
            softmax_scale=head_dim**-0.5,
            rope=None,
        )

    def _mlp(self, fields: Fields) -> DenseMLPSpec:
        return DenseMLPSpec(fields.integer("intermediate_size"), "relu2")

    def _moe(self, fields: Fields) -> MixtureOfExpertsSpec:
        experts, top_k = fields.count("n_routed_experts"), fields.integer("num_experts_per_tok")
        groups, chosen = fields.count("n_group"), fields.count("topk_group")
        if top_k > experts or experts % groups or chosen > groups:
            raise InputError(
                f"`num_experts_per_tok` {top_k} of {experts} experts in {groups} groups, of which {chosen} take part, "
                "is no choice"
            )
        router = RouterSpec(
            num_experts=experts,
            top_k=top_k,
            num_groups=groups,
            top_k_groups=chosen,
            scoring="sigmoid",
            selection_bias=True,
            normalize=fields.boolean("norm_topk_prob", True),
            scaling_factor=fields.number("routed_scaling_factor"),
        )
        return MixtureOfExpertsSpec(
            router,
            fields.integer("moe_intermediate_size"),
            fields.integer("moe_shared_expert_intermediate_size"),
            "relu2",
            latent_size=fields.integer("moe_latent_size") if fields.has("moe_latent_size") else None,
        )

    def notes(self, config: dict[str, Any]) -> list[str]:
        if not config.get("num_nextn_predict_layers"):
            return []
        return [
            "its layers for multi-token prediction (mtp.*) are kept bit for bit; pruned models do not draft with them"
        ]

    def pruned_config(self, config: dict[str, Any], num_experts: int) -> dict[str, Any]:
        pruned = super().pruned_config(config, num_experts)
        return pruned | ({"num_nextn_predict_layers": 0} if config.get("num_nextn_predict_layers") else {})


FAMILY = NemotronH()
