"""gpt-oss: experts with biases and a clamped SwiGLU behind a softmax router, a score of each head for nothing, and a
window in every other layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmc.convert.families.family import published, windows_of
from llmc.convert.families.llama import Llama
from llmc.convert.families.qwen3_moe import top_k_router
from llmc.convert.families.rope import rope_spec
from llmc.convert.fields import Fields
from llmc.convert.spec import (
    Activation,
    ClampedSwiGLU,
    GroupedQueryAttentionSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    RopeSpec,
)
from llmc.convert.stored_names import StoredNames

# Where config.json has none, or null.
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_PARTS = {"": "weight", "_bias": "bias", "_blocks": "weight_blocks", "_scales": "weight_scales"}


class GptOss(Llama):
    name = "gpt_oss"
    architectures = ("GptOssForCausalLM",)
    defaults = published(
        max_position_embeddings=131072,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        sliding_window=128,
        rms_norm_eps=1e-5,
        rope_theta=150000.0,
        attention_bias=True,
        num_local_experts=128,
        num_experts_per_tok=4,
        swiglu_alpha=1.702,
        swiglu_limit=7.0,
    )
    aliases = published(num_experts="num_local_experts")
    expert_count = "num_local_experts"
    stored_names = StoredNames(
        renamed=(
            ("mlp.router", "mlp.gate"),
            ("self_attn.sinks", "self_attn.sinks.weight"),
            *(
                (f"experts.{projection}{stored}", f"experts.{projection}.{part}")
                for projection in ("gate_up_proj", "down_proj")
                for stored, part in _PARTS.items()
            ),
        ),
        joined={"mlp.experts.gate_up_proj": ("gate_proj", "up_proj")},
        stacked=True,
        transposed=True,
        interleaved=True,
    )

    def activation(self, fields: Fields) -> Activation:
        super().activation(fields)
        return ClampedSwiGLU(fields.number("swiglu_alpha"), fields.number("swiglu_limit"))

    def windows(self, fields: Fields, num_layers: int) -> Sequence[int | None]:
        kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(num_layers)]
        return windows_of(fields, kinds, num_layers)

    def rope(self, fields: Fields, head_dim: int) -> RopeSpec:
        config = fields.config
        if not config.get("rope_scaling") and not config.get("rope_parameters"):
            config = {**config, "rope_parameters": _YARN}
        return rope_spec(config, head_dim, interleaved=False, max_positions=fields.integer("max_position_embeddings"))

    def attention(self, fields: Fields) -> GroupedQueryAttentionSpec:
        return replace(super().attention(fields), sinks=True)

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        bias = fields.boolean("attention_bias", True)
        return bias, bias

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        router = top_k_router(fields, self.expert_count, bias=True)
        width = fields.integer("intermediate_size")
        return (MixtureOfExpertsSpec(router, width, 0, self.activation(fields), bias=True),) * num_layers


FAMILY = GptOss()
