"""Kimi-K2.5, K2.6 and K2.7: DeepSeek-V3 with a vision tower."""

from __future__ import annotations

from llmc.convert.families.deepseek_v3 import DeepseekV3
from llmc.convert.families.family import published
from llmc.convert.families.vision_language import LEGACY, TRANSFORMERS_5, VisionLanguage, names_of


class KimiK25(VisionLanguage):
    name = "kimi_k25"
    architectures = ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration")
    texts = published(deepseek_v3=DeepseekV3())
    stored_names = names_of(
        DeepseekV3(),
        *("vision_tower.", "mm_projector.", "model.vision_tower.", "model.mm_projector."),
        spellings=(LEGACY, TRANSFORMERS_5),
    )


FAMILY = KimiK25()
