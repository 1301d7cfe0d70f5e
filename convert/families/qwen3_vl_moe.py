"""Qwen3-VL-30B-A3B and 235B-A22B: Qwen3-MoE with a vision tower, and experts in stacks [E, columns, rows]."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.qwen3_moe import Qwen3Moe
from llmc.convert.families.qwen3_vl import MISSING
from llmc.convert.families.vision_language import TRANSFORMERS_5, VisionLanguage, names_of
from llmc.convert.stored_names import StoredNames


class Qwen3VLMoeText(Qwen3Moe):
    defaults = published(
        max_position_embeddings=128000,
        num_key_value_heads=16,
        rope_theta=5e5,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        norm_topk_prob=True,  # whatever config.json says
    )
    stored_names = StoredNames(
        renamed=(
            ("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj.weight"),
            ("mlp.experts.down_proj", "mlp.experts.down_proj.weight"),
        ),
        joined={"mlp.experts.gate_up_proj": ("gate_proj", "up_proj")},
        stacked=True,
        transposed="unless shaped",
    )


class Qwen3VLMoe(VisionLanguage):
    name = "qwen3_vl_moe"
    architectures = ("Qwen3VLMoeForConditionalGeneration",)
    texts = published(qwen3_vl_moe_text=Qwen3VLMoeText())
    missing = MISSING
    stored_names = names_of(Qwen3VLMoeText(), "model.visual.", spellings=(TRANSFORMERS_5,))


FAMILY = Qwen3VLMoe()
