"""Gemma 2: norms around attention and MLP that multiply by 1 + weight, GeGLU, capped scores and logits, and a window in
every other layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmc.convert.families.family import published, windows_of
from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields
from llmc.convert.spec import Activation, GroupedQueryAttentionSpec, ModelSpec, WiringSpec


class Gemma2(Llama):
    name = "gemma2"
    architectures = ("Gemma2ForCausalLM",)
    defaults = published(
        max_position_embeddings=8192,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        tie_word_embeddings=True,
    )

    def activation(self, fields: Fields) -> Activation:
        only = "gelu_pytorch_tanh"
        fields.require("hidden_activation" if fields.has("hidden_activation") else "hidden_act", only, "GeGLU")
        return "gelu_tanh"

    def windows(self, fields: Fields, num_layers: int) -> Sequence[int | None]:
        kinds = [kind_by_pattern(layer, self.pattern(fields)) for layer in range(num_layers)]
        return windows_of(fields, kinds, num_layers)

    def pattern(self, fields: Fields) -> int:
        """One in so many layers sees all."""
        return 2

    def attention(self, fields: Fields) -> GroupedQueryAttentionSpec:
        fields.require("use_bidirectional_attention", False, "a token sees those before it")
        return replace(
            super().attention(fields),
            softmax_scale=fields.number("query_pre_attn_scalar") ** -0.5,
            softcap=fields.number("attn_logit_softcapping") if fields.has("attn_logit_softcapping") else None,
        )

    def wiring(self, fields: Fields) -> WiringSpec:
        return WiringSpec(norms="sandwich", unit_offset=True)

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields, cap = self.fields(config), "final_logit_softcapping"
        return replace(
            super().spec(config),
            embedding_scale=math.sqrt(fields.integer("hidden_size")),
            logits_softcap=fields.number(cap) if fields.has(cap) else None,
        )


def kind_by_pattern(layer: int, pattern: int) -> str:
    """What `layer_types` would say of a layer where one in `pattern` sees all."""
    return "sliding_attention" if (layer + 1) % pattern else "full_attention"


FAMILY = Gemma2()
