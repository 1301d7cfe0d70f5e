"""DeepSeek-V3.2: DeepSeek-V3 whose tokens look at `index_topk` others that an indexer chooses (DSA).

Up to so many tokens these are all. So the indexer is carried along as it is, and the model is described, calibrated and
checked as the DeepSeek-V3 that it is over that context.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmc.convert.families.deepseek_v3 import DeepseekV3
from llmc.convert.families.family import published
from llmc.convert.fields import Fields
from llmc.convert.spec import ModelSpec, Role

_DSA = {"indexed_attention", "deepseek_sparse_attention"}  # names in `layer_types`


class DeepseekV32(DeepseekV3):
    name = "deepseek_v32"
    other_names: tuple[str, ...] = ()
    architectures = ("DeepseekV32ForCausalLM",)
    defaults = published(DeepseekV3.defaults, max_position_embeddings=163840, index_topk=2048)

    def refuse_windows(self, fields: Fields) -> None:
        if not fields.has("layer_types") or set(fields.strings("layer_types")) - _DSA:
            super().refuse_windows(fields)

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        spec, indexed = super().spec(config), self.fields(config).integer("index_topk")
        return replace(spec, max_position_embeddings=min(spec.max_position_embeddings, indexed))

    def notes(self, config: dict[str, Any]) -> list[str]:
        context = self.spec(config).max_position_embeddings
        return [
            f"the context is {context:,} tokens: beyond `index_topk` an indexer chooses what a token sees, which is "
            "not done here; up to there it chooses all, and its tensors are kept as they are"
        ]

    def role(self, weight_name: str, spec: ModelSpec) -> Role:
        return "router" if _in_indexer(weight_name) else super().role(weight_name, spec)

    def redundant(self, weight_name: str, spec: ModelSpec) -> bool:
        return _in_indexer(weight_name) or super().redundant(weight_name, spec)


def _in_indexer(weight_name: str) -> bool:
    return ".self_attn.indexer." in weight_name


FAMILY = DeepseekV32()
