"""GLM-5, 5.1 and 5.2: DeepSeek-V3.2 by another name."""

from __future__ import annotations

from llmc.convert.families.deepseek_v32 import DeepseekV32
from llmc.convert.families.family import published


class GlmMoeDsa(DeepseekV32):
    name = "glm_moe_dsa"
    architectures = ("GlmMoeDsaForCausalLM",)
    defaults = published(
        max_position_embeddings=202752,
        first_k_dense_replace=3,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.5,
        q_lora_rank=2048,
        rms_norm_eps=1e-5,
        index_topk=2048,
    )


FAMILY = GlmMoeDsa()
