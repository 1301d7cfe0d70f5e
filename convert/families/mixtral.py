"""Mixtral: Mistral with experts, two of which a softmax router chooses."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.family import published
from llmc.convert.families.mistral import Mistral
from llmc.convert.families.qwen3_moe import top_k_router
from llmc.convert.fields import Fields
from llmc.convert.spec import MixtureOfExpertsSpec, MLPSpec, RouterSpec
from llmc.convert.stored_names import StoredNames


class Mixtral(Mistral):
    name = "mixtral"
    architectures = ("MixtralForCausalLM",)
    defaults = published(
        max_position_embeddings=131072,
        num_key_value_heads=8,
        sliding_window=None,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    aliases = published(num_experts="num_local_experts")
    expert_count = "num_local_experts"
    stored_names = StoredNames(
        renamed=(("block_sparse_moe", "mlp"), ("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
    )

    def router(self, fields: Fields) -> RouterSpec:
        return top_k_router(fields, "num_local_experts")

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        experts = fields.integer("intermediate_size")
        return (MixtureOfExpertsSpec(self.router(fields), experts, 0, self.activation(fields)),) * num_layers


FAMILY = Mixtral()
