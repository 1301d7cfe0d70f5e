"""Ministral 3: Mistral whose queries grow with their position."""

from __future__ import annotations

from dataclasses import replace

from llmc.convert.families.family import published
from llmc.convert.families.mistral import Mistral
from llmc.convert.fields import Fields
from llmc.convert.spec import GroupedQueryAttentionSpec, QueryScalingSpec


class Ministral3(Mistral):
    name = "ministral3"
    architectures = ("Ministral3ForCausalLM",)
    defaults = published(Mistral.defaults, max_position_embeddings=262144, sliding_window=None, head_dim=128)

    def attention(self, fields: Fields) -> GroupedQueryAttentionSpec:
        scaling = fields.mapping("rope_parameters")
        beta, length = scaling.number("llama_4_scaling_beta"), scaling.integer("original_max_position_embeddings")
        return replace(super().attention(fields), query_scaling=QueryScalingSpec(beta, length))


FAMILY = Ministral3()
