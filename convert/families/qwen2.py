"""Qwen2 and Qwen2.5 (and the Qwen distills of R1): Llama with biases on query, key and value."""

from __future__ import annotations

from typing import Any

from llmc.convert.families.llama import Llama
from llmc.convert.fields import Fields
from llmc.convert.spec import ModelSpec
from llmc.errors import InputError


class Qwen2(Llama):
    name = "qwen2"
    architectures = ("Qwen2ForCausalLM",)

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        return True, False

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        fields = Fields(config)
        full_layers = fields.integer("max_window_layers", 28, minimum=0)
        if fields.boolean("use_sliding_window", False) and full_layers < fields.integer("num_hidden_layers"):
            raise InputError("`use_sliding_window` is true, but sliding-window attention is not supported")
        return super().spec(config)


FAMILY = Qwen2()
