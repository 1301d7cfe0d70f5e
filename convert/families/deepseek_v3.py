"""DeepSeek-V3, R1 and what shares their architecture: latent attention, group-limited experts, MTP layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmc.convert.families.family import MTP_COUNTS, Family, published
from llmc.convert.families.rope import rope_scaling, rope_spec, yarn_mscale
from llmc.convert.fields import Fields
from llmc.convert.spec import (
    DenseMLPSpec,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    RopeSpec,
    RouterSpec,
)
from llmc.errors import InputError
from llmc.patterns import shown


class DeepseekV3(Family):
    name = "deepseek_v3"
    other_names: tuple[str, ...] = ("kimi_k2",)
    architectures = ("DeepseekV3ForCausalLM",)
    defaults = published(
        max_position_embeddings=4096,
        first_k_dense_replace=3,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        q_lora_rank=1536,
    )
    expert_count = "n_routed_experts"

    def mtp_layers(self, fields: Fields) -> int:
        return deepseek_mtp_layers(fields)

    def experts(self, fields: Fields) -> MixtureOfExpertsSpec:
        """Those of a layer."""
        return deepseek_experts(fields)

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields = self.fields(config)
        self.refuse_windows(fields)
        fields.require("hidden_act", "silu", "the experts are SwiGLU")
        num_layers, num_mtp_layers = fields.count("num_hidden_layers"), self.mtp_layers(fields)
        mlps = deepseek_mlps(fields, num_layers, num_mtp_layers, self.experts)
        max_positions = fields.integer("max_position_embeddings")
        interleaved = fields.boolean("rope_interleave", True)
        rope = rope_spec(config, fields.count("qk_rope_head_dim"), interleaved, max_positions)
        return ModelSpec(
            family=self.name,
            hidden_size=fields.integer("hidden_size"),
            vocab_size=fields.integer("vocab_size"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            attentions=(_latent_attention(fields, rope),) * (num_layers + num_mtp_layers),
            mlps=tuple(mlps),
            num_layers=num_layers,
            num_mtp_layers=num_mtp_layers,
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            max_position_embeddings=max_positions,
            bos_token_id=next(iter(fields.token_ids("bos_token_id")), None),
            eos_token_ids=fields.token_ids("eos_token_id"),
        )


def deepseek_mlps(
    fields: Fields, num_layers: int, num_mtp_layers: int, experts: Callable[[Fields], MixtureOfExpertsSpec]
) -> list[MLPSpec]:
    """Of all layers: dense ones first, or as `mlp_layer_types` says; MTP layers have experts."""
    fields.require("moe_layer_freq", 1, "every layer after first_k_dense_replace has experts")
    dense = [layer < fields.integer("first_k_dense_replace", 0, minimum=0) for layer in range(num_layers)]
    if fields.has("mlp_layer_types"):
        kinds = fields.strings("mlp_layer_types")
        if len(kinds) != num_layers or set(kinds) - {"dense", "sparse"}:
            raise InputError(
                f"`mlp_layer_types` must name {num_layers} layers dense or sparse, not {shown(str(kinds))}"
            )
        dense = [kind == "dense" for kind in kinds]
    dense += [False] * num_mtp_layers
    mixture = None if all(dense) else experts(fields)
    return [DenseMLPSpec(fields.integer("intermediate_size")) if each or mixture is None else mixture for each in dense]


def deepseek_mtp_layers(fields: Fields) -> int:
    given = [name for name in MTP_COUNTS if name in fields.config]
    return fields.count([*given, *MTP_COUNTS][0], 1, minimum=0)


def _latent_attention(fields: Fields, rope: RopeSpec) -> LatentAttentionSpec:
    nope = fields.integer("qk_nope_head_dim")
    if rope.dim % 2:
        raise InputError(f"`qk_rope_head_dim` must be even, not {rope.dim}")
    softmax_scale = (nope + rope.dim) ** -0.5
    scaling, kind = rope_scaling(fields.config)
    if kind != "default" and scaling.config.get("mscale_all_dim"):
        mscale = yarn_mscale(scaling.number("factor"), scaling.number("mscale_all_dim"))
        softmax_scale *= mscale * mscale
    return LatentAttentionSpec(
        num_heads=fields.integer("num_attention_heads"),
        q_lora_rank=fields.integer("q_lora_rank") if fields.has("q_lora_rank") else None,
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope.dim,
        v_head_dim=fields.integer("v_head_dim"),
        bias=fields.boolean("attention_bias", False),
        softmax_scale=softmax_scale,
        rope=rope,
    )


def deepseek_experts(fields: Fields) -> MixtureOfExpertsSpec:
    fields.require("scoring_func", "sigmoid", "DeepSeek-V3 scores experts with a sigmoid")
    fields.require("topk_method", "noaux_tc", "DeepSeek-V3 selects with a correction bias")
    experts, groups = fields.count("n_routed_experts"), fields.integer("n_group")
    top_k, top_k_groups = fields.integer("num_experts_per_tok"), fields.integer("topk_group")
    if experts % groups or experts // groups < 2:
        raise InputError(f"`n_routed_experts` {experts} must give each of `n_group` {groups} groups two or more")
    if top_k_groups > groups or top_k > top_k_groups * experts // groups:
        raise InputError(f"`num_experts_per_tok` {top_k} does not fit into `topk_group` {top_k_groups} groups")
    intermediate_size = fields.integer("moe_intermediate_size")
    return MixtureOfExpertsSpec(
        router=RouterSpec(
            num_experts=experts,
            top_k=top_k,
            num_groups=groups,
            top_k_groups=top_k_groups,
            scoring="sigmoid",
            selection_bias=True,
            normalize=fields.boolean("norm_topk_prob", True),
            scaling_factor=fields.number("routed_scaling_factor"),
        ),
        intermediate_size=intermediate_size,
        shared_intermediate_size=intermediate_size * fields.integer("n_shared_experts", 1, minimum=0),
    )


FAMILY = DeepseekV3()
