"""Qwen3-VL: Qwen3 with a vision tower.

Over text alone its three positions of a token are one, and its rotation is Qwen3's.
"""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.qwen3 import Qwen3
from llmc.convert.families.vision_language import TRANSFORMERS_5, VisionLanguage, names_of


class Qwen3VLText(Qwen3):
    defaults = published(Qwen3.defaults, max_position_embeddings=128000, rope_theta=5e5)


# Each token of an image has a time, a row and a column, by which three parts of a head are
# rotated, and features of the tower's middle layers are added to it behind the first decoder layers.
MISSING = "no images yet: they take three positions a token (M-RoPE) and features behind several layers (DeepStack)"


class Qwen3VL(VisionLanguage):
    name = "qwen3_vl"
    architectures = ("Qwen3VLForConditionalGeneration",)
    texts = published(qwen3_vl_text=Qwen3VLText())
    missing = MISSING
    stored_names = names_of(Qwen3(), "model.visual.", spellings=(TRANSFORMERS_5,))


FAMILY = Qwen3VL()
