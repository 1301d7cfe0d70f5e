"""Qwen3.5 and 3.6 with experts: those of Qwen3-Next in every layer, in stacks on disk or one by one."""

from __future__ import annotations

from dataclasses import replace

from llmc.convert.families.family import published
from llmc.convert.families.qwen3_5 import Qwen35, Qwen35Text
from llmc.convert.families.qwen3_next import HYBRID, MTP, NAMES, Qwen3Next
from llmc.convert.families.vision_language import TRANSFORMERS_5, names_of
from llmc.convert.fields import Fields
from llmc.convert.spec import MixtureOfExpertsSpec

_STACKS = ("gate_up_proj", "down_proj")  # which have no `.weight` behind their names


class Qwen35MoeText(Qwen35Text):
    name = "qwen3_5_moe_text"
    architectures = ("Qwen3_5MoeForCausalLM",)
    defaults = published(
        HYBRID,
        num_key_value_heads=2,
        num_experts=256,
        num_experts_per_tok=8,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        norm_topk_prob=True,
        rms_norm_eps=1e-6,
    )
    mlps = Qwen3Next.mlps
    stored_names = replace(
        NAMES,
        renamed=(*NAMES.renamed, *((f"experts.{name}", f"experts.{name}.weight") for name in _STACKS)),
        joined={"mlp.experts.gate_up_proj": ("gate_proj", "up_proj")},
        stacked="where found",
    )

    def experts(self, fields: Fields) -> MixtureOfExpertsSpec:
        fields.require("norm_topk_prob", True, "weights of the chosen experts sum to one")
        fields.require("decoder_sparse_step", 1, "every layer has experts")
        fields.require("mlp_only_layers", [], "every layer has experts")
        return super().experts(fields)


class Qwen35Moe(Qwen35):
    name = "qwen3_5_moe"
    architectures = ("Qwen3_5MoeForConditionalGeneration",)
    texts = published(qwen3_5_moe_text=Qwen35MoeText())
    stored_names = names_of(Qwen35MoeText(), "model.visual.", MTP, spellings=(TRANSFORMERS_5,))
    expert_count = "num_experts"


FAMILY = Qwen35Moe()
