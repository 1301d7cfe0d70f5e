"""Qwen3.5 and 3.6, dense: Qwen3-Next's layers with plain MLPs, beside a vision tower.

Over text alone the three positions of a token are one, and the rotation is Qwen3's.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.family import published
from llmc.convert.families.llama import Llama
from llmc.convert.families.qwen3_next import HYBRID, MTP, Qwen3Next
from llmc.convert.families.vision_language import TRANSFORMERS_5, VisionLanguage, names_of
from llmc.convert.fields import Fields
from llmc.convert.spec import AttentionSpec, ModelSpec, Role


class Qwen35Text(Qwen3Next):
    name = "qwen3_5_text"
    architectures = ("Qwen3_5ForCausalLM",)
    defaults = published(HYBRID, num_key_value_heads=4, rms_norm_eps=1e-6)
    fused = False
    mlps = Llama.mlps

    def attentions(self, fields: Fields, num_layers: int) -> Sequence[AttentionSpec]:
        fields.one_of("output_gate_type", "swish", "silu", default="swish")  # of Gated DeltaNet: one thing, two names
        return super().attentions(fields, num_layers)


class Qwen35(VisionLanguage):
    name = "qwen3_5"
    architectures = ("Qwen3_5ForConditionalGeneration",)
    texts = published(qwen3_5_text=Qwen35Text())
    stored_names = names_of(Qwen35Text(), "model.visual.", MTP, spellings=(TRANSFORMERS_5,))

    def role(self, weight_name: str, spec: ModelSpec) -> Role:
        return "mtp" if weight_name.startswith(MTP) else super().role(weight_name, spec)


FAMILY = Qwen35()
