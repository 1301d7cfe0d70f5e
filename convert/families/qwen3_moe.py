"""Qwen3-30B-A3B, 235B-A22B and Coder: Qwen3 with experts behind a softmax router, none of them shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from llmc.convert.families.family import published, windows_of
from llmc.convert.families.qwen3 import Qwen3
from llmc.convert.fields import Fields
from llmc.convert.spec import DenseMLPSpec, MixtureOfExpertsSpec, MLPSpec, RouterSpec
from llmc.errors import InputError


def top_k_router(
    fields: Fields,
    count: str,
    scoring: Literal["sigmoid", "softmax"] = "softmax",
    selection_bias: bool = False,
    normalize: bool = True,
    bias: bool = False,
) -> RouterSpec:
    """One that chooses among all experts; `count` is the field that counts them."""
    experts, top_k = fields.count(count), fields.integer("num_experts_per_tok")
    if top_k > experts:
        raise InputError(f"`num_experts_per_tok` {top_k} is more than `{count}` {experts}")
    return RouterSpec(experts, top_k, 1, 1, scoring, selection_bias, normalize, scaling_factor=1.0, bias=bias)


class Qwen3Moe(Qwen3):
    name = "qwen3_moe"
    architectures = ("Qwen3MoeForCausalLM",)
    defaults = published(
        max_position_embeddings=32768,
        num_key_value_heads=4,
        sliding_window=4096,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    )
    aliases = published(num_local_experts="num_experts")
    expert_count: str = "num_experts"

    def windows(self, fields: Fields, num_layers: int) -> Sequence[int | None]:
        """All layers have one, if any has."""
        slides = fields.boolean("use_sliding_window", False) and fields.has("sliding_window")
        return windows_of(fields, ["sliding_attention" if slides else "full_attention"] * num_layers, num_layers)

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        step, dense = fields.integer("decoder_sparse_step", 1), fields.integers("mlp_only_layers")
        mlps: list[MLPSpec] = [self.experts(fields)] * num_layers
        for layer in range(num_layers):
            if layer in dense or (layer + 1) % step:
                mlps[layer] = DenseMLPSpec(fields.integer("intermediate_size"), self.activation(fields))
        return mlps

    def experts(self, fields: Fields) -> MixtureOfExpertsSpec:
        router = top_k_router(fields, self.expert_count, normalize=fields.boolean("norm_topk_prob", False))
        return MixtureOfExpertsSpec(router, fields.integer("moe_intermediate_size"), 0, self.activation(fields))


FAMILY = Qwen3Moe()
