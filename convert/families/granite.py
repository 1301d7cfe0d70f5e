"""Granite 3: Llama with multipliers on embedding, scores, residuals and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields
from llmc.convert.spec import GroupedQueryAttentionSpec, ModelSpec, WiringSpec


class Granite(Llama):
    name = "granite"
    architectures = ("GraniteForCausalLM",)

    def attention(self, fields: Fields) -> GroupedQueryAttentionSpec:
        return replace(super().attention(fields), softmax_scale=fields.number("attention_multiplier", 1.0))

    def wiring(self, fields: Fields) -> WiringSpec:
        return WiringSpec(residual_scale=fields.number("residual_multiplier", 1.0))

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields = self.fields(config)
        return replace(
            super().spec(config),
            embedding_scale=fields.number("embedding_multiplier", 1.0),
            logits_scale=1 / fields.number("logits_scaling", 1.0),
        )


FAMILY = Granite()
