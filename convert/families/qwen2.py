"""Qwen2 and Qwen2.5 (and the Qwen distills of R1): Llama with biases on query, key and value."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.family import published, windows_of
from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields


class Qwen2(Llama):
    name = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    defaults = published(max_position_embeddings=32768, num_key_value_heads=32, sliding_window=4096)

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        return True, False

    def windows(self, fields: Fields, num_layers: int) -> Sequence[int | None]:
        """Layers from `max_window_layers` on have a window, unless `layer_types` says which have."""
        slides = fields.boolean("use_sliding_window", False) and fields.has("sliding_window")
        if not slides:
            self.refuse_layer_types(fields)
        full = fields.integer("max_window_layers", 28, minimum=0) if slides else num_layers
        kinds = ["full_attention" if layer < full else "sliding_attention" for layer in range(num_layers)]
        return windows_of(fields, kinds, num_layers)


FAMILY = Qwen2()
