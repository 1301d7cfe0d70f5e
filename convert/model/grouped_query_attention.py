"""Grouped-query attention, GQA (Ainslie et al. 2023)."""

from __future__ import annotations

import torch
from torch import nn

from llmc.convert.model.cache import KeyValueCache, as_cached
from llmc.convert.model.causal_attention import causal_attention
from llmc.convert.model.linear import Linear
from llmc.convert.model.rotary import rotary, rotary_table
from llmc.convert.spec import GroupedQueryAttentionSpec, RopeSpec


class GroupedQueryAttention(nn.Module):
    def __init__(self, spec: GroupedQueryAttentionSpec, rope: RopeSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec, self.rope = spec, rope
        self.cache_scales: dict[str, float] = {}  # k_scale and v_scale, where the cache holds E4M3
        query_size, key_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.q_proj = Linear(hidden_size, query_size, bias=spec.qkv_bias)
        self.k_proj = Linear(hidden_size, key_size, bias=spec.qkv_bias)
        self.v_proj = Linear(hidden_size, key_size, bias=spec.qkv_bias)
        self.o_proj = Linear(query_size, hidden_size, bias=spec.output_bias)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """x [B, S, H], positions [B, S] → [B, S, H]."""
        return self.o_proj(self.mix(x, positions, cache))

    def entries(self, x: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, S, H] → keys and values [B, num_kv_heads, S, head_dim], by the name of their cache's scale."""
        key, value = (self._heads(project(x)) for project in (self.k_proj, self.v_proj))
        return {"k_scale": rotary(key, rotary_table(self.rope, positions), self.rope.interleaved), "v_scale": value}

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)

    def mix(self, x: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """[B, S, H] → [B, S, heads * head_dim], what `o_proj` reads."""
        query = rotary(self._heads(self.q_proj(x)), rotary_table(self.rope, positions), self.rope.interleaved)
        key, value = as_cached(self.entries(x, positions), self.cache_scales).values()
        if cache is not None:
            key, value = (part.to(x.dtype) for part in cache.append(key, value))
        mixed = causal_attention(query, key, value, self.spec.softmax_scale)
        return mixed.transpose(1, 2).flatten(2)
