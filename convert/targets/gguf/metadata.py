"""What a GGUF file says of the model, by which llama.cpp builds its graph."""

from __future__ import annotations

from typing import Any

import gguf

from llmc.convert.gguf.architectures import (
    DEEPSEEK2,
    Architecture,
    frequency_factors,
    grouping,
    scaling_of,
)
from llmc.convert.spec import (
    DenseMLPSpec,
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
)

_GATING = {"softmax": gguf.ExpertGatingFuncType.SOFTMAX, "sigmoid": gguf.ExpertGatingFuncType.SIGMOID}
_SCALING = {
    "none": gguf.RopeScalingType.NONE,
    "frequencies": gguf.RopeScalingType.NONE,
    "linear": gguf.RopeScalingType.LINEAR,
    "yarn": gguf.RopeScalingType.YARN,
}


def write_metadata(
    writer: gguf.GGUFWriter, spec: ModelSpec, architecture: Architecture, config: dict[str, Any], mtp: bool
) -> list[float] | None:
    """Add what there is to say of a model that llama.cpp computes.

    Args:
        writer: Of this architecture, that has no file yet.
        spec: Of the model.
        architecture: llama.cpp's.
        config: config.json's, of the language model.
        mtp: Whether layers for multi-token prediction are in the file.

    Returns:
        By what frequencies of the rotation are divided, which is a tensor of the file; None: they are not.
    """
    attention, layers = spec.attentions[0], spec.num_all_layers if mtp else spec.num_layers
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(layers)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    if mtp and spec.num_mtp_layers:
        writer.add_nextn_predict_layers(spec.num_mtp_layers)
    if isinstance(attention, LatentAttentionSpec):
        _latent(writer, attention)
    else:
        assert isinstance(attention, GroupedQueryAttentionSpec)
        writer.add_head_count(attention.num_heads)
        writer.add_head_count_kv(attention.num_kv_heads)
        writer.add_key_length(attention.head_dim)
        writer.add_value_length(attention.value_size)
    _mlps(writer, spec, architecture)
    rope = attention.rope
    assert rope is not None
    writer.add_rope_dimension_count(rope.dim)
    writer.add_rope_freq_base(rope.theta)
    scaling = scaling_of(spec, config)
    writer.add_rope_scaling_type(_SCALING[scaling.kind])
    if scaling.kind in ("linear", "yarn"):
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
        if scaling.attention_factor != 1:
            writer.add_rope_scaling_attn_factors(scaling.attention_factor)
        if scaling.mscale_all_dim:  # llama.cpp divides by 0.1 what its own converter has multiplied by it
            writer.add_rope_scaling_yarn_log_mul(0.1 * scaling.mscale_all_dim)
    return frequency_factors(rope) if scaling.kind == "frequencies" else None


def _latent(writer: gguf.GGUFWriter, attention: LatentAttentionSpec) -> None:
    """Latents are cached and kv_b_proj is absorbed, so that attention has one head of keys and values."""
    rank, rotary = attention.kv_lora_rank, attention.qk_rope_head_dim
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(rank + rotary)
    writer.add_value_length(rank)
    writer.add_key_length_mla(attention.qk_nope_head_dim + rotary)
    writer.add_value_length_mla(attention.v_head_dim)
    writer.add_kv_lora_rank(rank)
    writer.add_q_lora_rank(attention.q_lora_rank or 0)  # left out, llama.cpp refuses the file


def _mlps(writer: gguf.GGUFWriter, spec: ModelSpec, architecture: Architecture) -> None:
    mlps = spec.mlps[: spec.num_layers]
    dense = [mlp for mlp in mlps if isinstance(mlp, DenseMLPSpec)]
    mixture = next((mlp for mlp in mlps if isinstance(mlp, MixtureOfExpertsSpec)), None)
    width = dense[0].intermediate_size if dense else mixture.intermediate_size if mixture else 0
    writer.add_feed_forward_length(width)
    if mixture or architecture is DEEPSEEK2:
        writer.add_expert_feed_forward_length(mixture.intermediate_size if mixture else width)
    if architecture is DEEPSEEK2:
        writer.add_leading_dense_block_count(len(dense))
        shared = mixture.shared_intermediate_size // mixture.intermediate_size if mixture else 0
        writer.add_expert_shared_count(shared)
    if mixture is None:
        return
    router = mixture.router
    writer.add_expert_count(router.num_experts)
    writer.add_expert_used_count(router.top_k)
    if architecture is DEEPSEEK2:
        writer.add_expert_weights_scale(router.scaling_factor)
        writer.add_expert_weights_norm(router.normalize)
        writer.add_expert_gating_func(_GATING[router.scoring])
        if grouping(mixture):
            writer.add_expert_group_count(router.num_groups)
            writer.add_expert_group_used_count(router.top_k_groups)
