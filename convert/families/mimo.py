"""MiMo-7B: Qwen2 with a layer for multi-token prediction, which reads what has not passed the final norm."""

from __future__ import annotations

from typing import Any

from llmc.convert.families.family import published
from llmc.convert.families.qwen2 import Qwen2
from llmc.convert.fields import Fields
from llmc.convert.spec import WiringSpec
from llmc.convert.stored_names import StoredNames


class MiMo(Qwen2):
    name = "mimo"
    other_names = ("qwen2",)
    architectures = ("MiMoForCausalLM",)
    defaults = published(Qwen2.defaults, num_nextn_predict_layers=0)
    stored_names = StoredNames(
        renamed=(
            ("token_layernorm", "enorm"),
            ("hidden_layernorm", "hnorm"),
            ("input_proj", "eh_proj"),
            ("final_layernorm", "shared_head.norm"),
        ),
        mtp="model.mtp_layers.{}",
    )

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        fields.require("attention_bias", True, "MiMo is Qwen2, which has biases on query, key and value")
        return super().biases(fields)

    def mtp_layers(self, fields: Fields) -> int:
        return fields.count("num_nextn_predict_layers", 0, minimum=0)

    def wiring(self, fields: Fields) -> WiringSpec:
        return WiringSpec(mtp_hidden_first=True, mtp_hidden_normed=False)

    def native_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Transformers has no class of this name, but Qwen2's is the same without MTP; vLLM goes by `architectures`."""
        return super().native_config(config) | {"model_type": "qwen2"}


FAMILY = MiMo()
