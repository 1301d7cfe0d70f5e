"""Gemma 3 with its SigLIP vision tower."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.gemma3 import Gemma3
from llmc.convert.families.vision_language import LEGACY, TRANSFORMERS_5, VisionLanguage, names_of


class Gemma3VL(VisionLanguage):
    name = "gemma3"
    architectures = ("Gemma3ForConditionalGeneration",)
    texts = published(gemma3_text=Gemma3())
    tied = True
    stored_names = names_of(
        Gemma3(),
        *("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
        spellings=(LEGACY, TRANSFORMERS_5),
    )


FAMILY = Gemma3VL()
