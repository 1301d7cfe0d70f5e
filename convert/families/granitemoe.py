"""Granite 3.0 and 3.1 with experts: Granite, whose router takes a softmax over the experts that it chose."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.family import published
from llmc.convert.families.granite import Granite
from llmc.convert.families.qwen3_moe import top_k_router
from llmc.convert.fields import Fields
from llmc.convert.spec import MixtureOfExpertsSpec, MLPSpec
from llmc.convert.stored_names import StoredNames


class GraniteMoe(Granite):
    name = "granitemoe"
    architectures = ("GraniteMoeForCausalLM",)
    defaults = published(max_position_embeddings=2048, num_local_experts=8, num_experts_per_tok=2)
    expert_count = "num_local_experts"
    stored_names = StoredNames(
        renamed=(
            ("input_linear", "experts.gate_up_proj"),
            ("output_linear", "experts.down_proj"),
            ("router.layer", "gate"),
            ("block_sparse_moe", "mlp"),
        ),
        joined={"mlp.experts.gate_up_proj": ("gate_proj", "up_proj")},
        stacked=True,
    )

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        # A softmax over the chosen is one over all, of which the chosen are made to sum to one.
        router, size = top_k_router(fields, self.expert_count), fields.integer("intermediate_size")
        return (MixtureOfExpertsSpec(router, size, 0, self.activation(fields)),) * num_layers


FAMILY = GraniteMoe()
