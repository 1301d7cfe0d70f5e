"""Mistral 7B, Small, Nemo and Large: Llama, whose layers may see the last tokens only (v0.1)."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.family import published, windows_of
from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields


class Mistral(Llama):
    name = "mistral"
    architectures = ("MistralForCausalLM",)
    defaults = published(max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096)

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        return False, False

    def windows(self, fields: Fields, num_layers: int) -> Sequence[int | None]:
        kind = "sliding_attention" if fields.has("sliding_window") else "full_attention"
        return windows_of(fields, [kind] * num_layers, num_layers)


FAMILY = Mistral()
