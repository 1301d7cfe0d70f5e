"""MiniMax-M2: norms over all heads, half of a head rotated, Mixtral's experts behind DeepSeek-V3's router."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.mixtral import Mixtral
from llmc.convert.families.qwen3_moe import top_k_router
from llmc.convert.fields import Fields
from llmc.convert.spec import QKNormSpec, RouterSpec
from llmc.convert.stored_names import StoredNames
from llmc.errors import InputError


class MiniMaxM2(Mixtral):
    name = "minimax_m2"
    other_names = ("minimax",)
    architectures = ("MiniMaxM2ForCausalLM",)
    defaults = published(
        max_position_embeddings=196608,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=5e6,
        num_local_experts=256,
        num_experts_per_tok=8,
    )
    stored_names = StoredNames(
        renamed=(
            *Mixtral.stored_names.renamed,
            ("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
        )
    )
    partial_rotary = 1.0

    def rotary_dim(self, fields: Fields, head_dim: int) -> int:
        if not fields.has("rotary_dim"):
            return super().rotary_dim(fields, head_dim)
        dim = fields.count("rotary_dim")
        if dim % 2 or dim > head_dim:
            raise InputError(f"`rotary_dim` must be even and at most `head_dim` {head_dim}, not {dim}")
        return dim

    def qk_norm(self, fields: Fields) -> QKNormSpec | None:
        if not fields.boolean("use_qk_norm", True):
            raise InputError("`use_qk_norm` is false; only true is supported: MiniMax-M2 norms queries and keys")
        return QKNormSpec("all", fields.number("rms_norm_eps", 1e-6))

    def router(self, fields: Fields) -> RouterSpec:
        return top_k_router(fields, "num_local_experts", scoring="sigmoid", selection_bias=True)


FAMILY = MiniMaxM2()
