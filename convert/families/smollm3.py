"""SmolLM3: Llama that does not rotate in every fourth layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmc.convert.families.family import published, windows_of
from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields
from llmc.convert.spec import AttentionSpec
from llmc.errors import InputError


class SmolLM3(Llama):
    name = "smollm3"
    architectures = ("SmolLM3ForCausalLM",)
    defaults = published(max_position_embeddings=32768, num_key_value_heads=4, rope_theta=2e6, tie_word_embeddings=True)

    def attentions(self, fields: Fields, num_layers: int) -> Sequence[AttentionSpec]:
        step, attention = fields.integer("no_rope_layer_interval", 4), self.attention(fields)
        rotates = fields.integers("no_rope_layers") or [int((i + 1) % step != 0) for i in range(num_layers)]
        if len(rotates) < num_layers:
            raise InputError(f"`no_rope_layers` has {len(rotates)} entries, and the model {num_layers} layers")
        slides = fields.boolean("use_sliding_window", False) and fields.has("sliding_window")
        kinds = ["sliding_attention" if slides and not each else "full_attention" for each in rotates[:num_layers]]
        windows = windows_of(fields, kinds, num_layers)
        pairs = [(attention.rope if each else None, window) for each, window in zip(rotates, windows, strict=False)]
        alike = {(rope, window): replace(attention, rope=rope, window=window) for rope, window in dict.fromkeys(pairs)}
        return [alike[pair] for pair in pairs]


FAMILY = SmolLM3()
