"""Seed-OSS: Llama with biases on query, key and value."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields


class SeedOss(Llama):
    name = "seed_oss"
    architectures = ("SeedOssForCausalLM",)
    defaults = published(max_position_embeddings=524288, num_key_value_heads=8, head_dim=128)

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        return fields.boolean("attention_bias", True), fields.boolean("attention_out_bias", False)


FAMILY = SeedOss()
