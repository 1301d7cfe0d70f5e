"""Qwen2 and Qwen2.5 (and the Qwen distills of R1): Llama with biases on query, key and value."""

from __future__ import annotations

from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields
from llmc.errors import InputError


class Qwen2(Llama):
    name = "qwen2"
    architectures = ("Qwen2ForCausalLM",)

    max_positions = 32768
    num_kv_heads = 32

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        return True, False

    def refuse_windows(self, fields: Fields) -> None:
        """Layers from `max_window_layers` on have a window, unless `layer_types` says which have."""
        self._refuse_layer_types(fields)
        windows = fields.boolean("use_sliding_window", False) and fields.config.get("sliding_window", 4096) is not None
        if windows and not fields.has("layer_types"):
            full_layers = fields.integer("max_window_layers", 28, minimum=0)
            if full_layers < fields.integer("num_hidden_layers"):
                raise InputError("`use_sliding_window` is true, but sliding-window attention is not supported")


FAMILY = Qwen2()
