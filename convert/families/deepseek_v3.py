"""DeepSeek-V3, R1 and what shares their architecture: latent attention, group-limited experts, MTP layers."""

from __future__ import annotations

from typing import Any

from llmc.convert.families.family import Family, Published
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


class DeepseekV3(Family):
    name = "deepseek_v3"
    other_names = ("kimi_k2",)
    architectures = ("DeepseekV3ForCausalLM",)

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields = Published(config)
        self.refuse_windows(fields)
        fields.require("hidden_act", "silu", "the experts are SwiGLU")
        fields.require("moe_layer_freq", 1, "every layer after first_k_dense_replace has experts")
        num_layers = fields.count("num_hidden_layers")
        num_mtp_layers = _num_mtp_layers(fields)
        num_dense = min(fields.integer("first_k_dense_replace", 3, minimum=0), num_layers)
        mlps: list[MLPSpec] = [DenseMLPSpec(fields.integer("intermediate_size"))] * num_dense
        if num_layers + num_mtp_layers > num_dense:
            mlps += [_mixture_of_experts(fields)] * (num_layers + num_mtp_layers - num_dense)
        max_positions = fields.integer("max_position_embeddings", 4096)
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

    def pruned_config(self, config: dict[str, Any], num_experts: int) -> dict[str, Any]:
        return {**config, "n_routed_experts": num_experts}


def _num_mtp_layers(fields: Fields) -> int:
    names = ("num_nextn_predict_layers", "num_mtp_layers")  # transformers reads both
    given = [name for name in names if name in fields.config]
    return fields.count([*given, *names][0], 1, minimum=0)


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
        q_lora_rank=None if fields.config.get("q_lora_rank", 0) is None else fields.integer("q_lora_rank", 1536),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope.dim,
        v_head_dim=fields.integer("v_head_dim"),
        bias=fields.boolean("attention_bias", False),
        softmax_scale=softmax_scale,
        rope=rope,
    )


def _mixture_of_experts(fields: Fields) -> MixtureOfExpertsSpec:
    fields.require("scoring_func", "sigmoid", "DeepSeek-V3 scores experts with a sigmoid")
    fields.require("topk_method", "noaux_tc", "DeepSeek-V3 selects with a correction bias")
    experts, groups = fields.count("n_routed_experts"), fields.integer("n_group", 8)
    top_k, top_k_groups = fields.integer("num_experts_per_tok"), fields.integer("topk_group", 4)
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
            scaling_factor=fields.number("routed_scaling_factor", 2.5),
        ),
        intermediate_size=intermediate_size,
        shared_intermediate_size=intermediate_size * fields.integer("n_shared_experts", 1, minimum=0),
    )


FAMILY = DeepseekV3()
