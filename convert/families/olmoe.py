"""OLMoE: experts behind a softmax router, and norms over all heads' queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.family import published
from llmc.convert.families.llama import Llama
from llmc.convert.families.qwen3_moe import top_k_router
from llmc.convert.fields import Fields
from llmc.convert.spec import MixtureOfExpertsSpec, MLPSpec, QKNormSpec


class OlMoE(Llama):
    name = "olmoe"
    architectures = ("OlmoeForCausalLM",)
    defaults = published(
        max_position_embeddings=4096, rms_norm_eps=1e-5, num_experts=64, num_experts_per_tok=8, intermediate_size=2048
    )
    aliases = published(num_local_experts="num_experts")
    expert_count = "num_experts"

    def qk_norm(self, fields: Fields) -> QKNormSpec:
        fields.require("clip_qkv", None, "queries, keys and values are not clipped")
        return QKNormSpec("all", fields.number("rms_norm_eps"))

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        router = top_k_router(fields, self.expert_count, normalize=fields.boolean("norm_topk_prob", False))
        return (
            MixtureOfExpertsSpec(router, fields.integer("intermediate_size"), 0, self.activation(fields)),
        ) * num_layers


FAMILY = OlMoE()
