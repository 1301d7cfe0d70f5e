"""Mistral Small 3.1 and 3.2, and Ministral 3: Mistral with a Pixtral vision tower."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.ministral3 import Ministral3
from llmc.convert.families.mistral import Mistral
from llmc.convert.families.vision_language import LEGACY, TRANSFORMERS_5, VisionLanguage, names_of


class Mistral3(VisionLanguage):
    name = "mistral3"
    architectures = ("Mistral3ForConditionalGeneration",)
    texts = published(mistral=Mistral(), ministral3=Ministral3())
    tied = True
    stored_names = names_of(
        Mistral(),
        *("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
        spellings=(LEGACY, TRANSFORMERS_5),
    )


FAMILY = Mistral3()
