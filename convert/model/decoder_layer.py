"""One decoder layer: attention and MLP, each behind a norm and beside a residual."""

from __future__ import annotations

import torch
from torch import nn

from llmc.convert.model.cache import LayerCache
from llmc.convert.model.dense_mlp import DenseMLP
from llmc.convert.model.grouped_query_attention import GroupedQueryAttention
from llmc.convert.model.latent_attention import LatentAttention
from llmc.convert.model.mixture_of_experts import MixtureOfExperts
from llmc.convert.model.rms_norm import RMSNorm
from llmc.convert.spec import LatentAttentionSpec, MixtureOfExpertsSpec, ModelSpec


class DecoderLayer(nn.Module):
    """`model.layers.<index>`; attribute names are tensor names."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        hidden_size, mlp = spec.hidden_size, spec.mlps[index]
        self.input_layernorm = RMSNorm(hidden_size, spec.rms_norm_eps)
        self.self_attn = (
            LatentAttention(spec.attention, spec.rope, hidden_size)
            if isinstance(spec.attention, LatentAttentionSpec)
            else GroupedQueryAttention(spec.attention, spec.rope, hidden_size)
        )
        self.post_attention_layernorm = RMSNorm(hidden_size, spec.rms_norm_eps)
        self.mlp = (
            MixtureOfExperts(mlp, hidden_size)
            if isinstance(mlp, MixtureOfExpertsSpec)
            else DenseMLP(hidden_size, mlp.intermediate_size)
        )

    def forward(self, x: torch.Tensor, positions: torch.Tensor, cache: LayerCache | None = None) -> torch.Tensor:
        """x [B, S, H], positions [B, S] → [B, S, H]."""
        x = x + self.self_attn(self.input_layernorm(x), positions, cache)
        return x + self.mlp(self.post_attention_layernorm(x))
