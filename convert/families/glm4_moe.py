"""GLM-4.5, 4.6 and 4.7: grouped-query attention that rotates half of a head, DeepSeek-V3's experts and MTP layer."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.deepseek_v3 import deepseek_experts, deepseek_mlps, deepseek_mtp_layers
from llmc.convert.families.family import published
from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields
from llmc.convert.spec import MLPSpec, QKNormSpec


class Glm4Moe(Llama):
    name = "glm4_moe"
    architectures = ("Glm4MoeForCausalLM",)
    defaults = published(
        max_position_embeddings=131072,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        first_k_dense_replace=1,
    )
    partial_rotary = 0.5
    expert_count = "n_routed_experts"

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        return fields.boolean("attention_bias", False), False

    def qk_norm(self, fields: Fields) -> QKNormSpec | None:
        return QKNormSpec("head", fields.number("rms_norm_eps")) if fields.boolean("use_qk_norm", False) else None

    def mtp_layers(self, fields: Fields) -> int:
        return deepseek_mtp_layers(fields)

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        self.activation(fields)
        return deepseek_mlps(fields, num_layers, num_mtp_layers, deepseek_experts)


FAMILY = Glm4Moe()
