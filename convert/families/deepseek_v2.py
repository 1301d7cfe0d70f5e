"""DeepSeek-V2 and V2.5, V2-Lite: DeepSeek-V3 with a softmax in its router, groups that are ranked by their best expert
(V2) or none (V2-Lite), and no MTP layer.
"""

from __future__ import annotations

from llmc.convert.families.deepseek_v3 import DeepseekV3
from llmc.convert.families.family import published
from llmc.convert.fields import Fields
from llmc.convert.spec import MixtureOfExpertsSpec, RouterSpec
from llmc.errors import InputError


class DeepseekV2(DeepseekV3):
    name = "deepseek_v2"
    other_names: tuple[str, ...] = ()
    architectures = ("DeepseekV2ForCausalLM",)
    defaults = published(max_position_embeddings=2048, first_k_dense_replace=0, q_lora_rank=1536, topk_method="greedy")

    def mtp_layers(self, fields: Fields) -> int:
        return 0

    def experts(self, fields: Fields) -> MixtureOfExpertsSpec:
        fields.require("scoring_func", "softmax", "DeepSeek-V2 scores experts with a softmax")
        fields.require("norm_topk_prob", False, "DeepSeek-V2 takes the softmax as it is")
        grouped = fields.one_of("topk_method", "greedy", "group_limited_greedy") == "group_limited_greedy"
        experts, top_k = fields.count("n_routed_experts", 64), fields.integer("num_experts_per_tok")
        groups, top_groups = (fields.integer(name) if grouped else 1 for name in ("n_group", "topk_group"))
        if experts % groups or top_groups > groups or top_k > top_groups * experts // groups:
            raise InputError(
                f"`num_experts_per_tok` {top_k} does not fit into `topk_group` {top_groups} of {groups} groups"
            )
        router = RouterSpec(
            num_experts=experts,
            top_k=top_k,
            num_groups=groups,
            top_k_groups=top_groups,
            scoring="softmax",
            selection_bias=False,
            normalize=False,
            scaling_factor=fields.number("routed_scaling_factor", 1.0),
            group_score="best",
        )
        size = fields.integer("moe_intermediate_size", 1407)
        return MixtureOfExpertsSpec(router, size, size * fields.integer("n_shared_experts", 2, minimum=0))


FAMILY = DeepseekV2()
