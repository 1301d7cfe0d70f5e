"""Qwen3 and R1-0528-Qwen3-8B: Qwen2 with a norm on every head's query and key instead of biases."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.llama import Llama
from llmc.convert.families.qwen2 import Qwen2
from llmc.convert.fields import Fields
from llmc.convert.spec import QKNormSpec


class Qwen3(Qwen2):
    name = "qwen3"
    architectures = ("Qwen3ForCausalLM",)
    defaults = published(Qwen2.defaults, head_dim=128)

    biases = Llama.biases

    def qk_norm(self, fields: Fields) -> QKNormSpec:
        return QKNormSpec("head", fields.number("rms_norm_eps", 1e-6))


FAMILY = Qwen3()
