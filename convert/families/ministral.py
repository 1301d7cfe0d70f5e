"""Ministral 8B: Mistral whose layers differ in what they see."""

from __future__ import annotations

from llmc.convert.families.mistral import Mistral


class Ministral(Mistral):
    name = "ministral"
    architectures = ("MinistralForCausalLM",)


FAMILY = Ministral()
