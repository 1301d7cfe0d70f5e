"""OLMo 2: norms behind attention and MLP, and over all heads' queries and keys."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields
from llmc.convert.spec import QKNormSpec, WiringSpec


class Olmo2(Llama):
    name = "olmo2"
    architectures = ("Olmo2ForCausalLM",)
    defaults = published(max_position_embeddings=2048, rms_norm_eps=1e-5)

    def qk_norm(self, fields: Fields) -> QKNormSpec:
        return QKNormSpec("all", fields.number("rms_norm_eps"))

    def wiring(self, fields: Fields) -> WiringSpec:
        return WiringSpec(norms="post")


FAMILY = Olmo2()
