"""GLM-4.7-Flash: DeepSeek-V3 by another name."""

from __future__ import annotations

from llmc.convert.families.deepseek_v3 import DeepseekV3
from llmc.convert.families.family import published


class Glm4MoeLite(DeepseekV3):
    name = "glm4_moe_lite"
    other_names: tuple[str, ...] = ()
    architectures = ("Glm4MoeLiteForCausalLM",)
    defaults = published(
        max_position_embeddings=202752,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.8,
        q_lora_rank=768,
        rms_norm_eps=1e-5,
    )


FAMILY = Glm4MoeLite()
