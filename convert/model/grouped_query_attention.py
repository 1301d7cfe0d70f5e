"""Grouped-query attention, GQA (Ainslie et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from llmc.convert.model.cache import KeyValueCache, as_cached
from llmc.convert.model.causal_attention import causal_attention
from llmc.convert.model.linear import Linear
from llmc.convert.model.modules import add_modules
from llmc.convert.model.rotary import rotary
from llmc.convert.spec import GroupedQueryAttentionSpec


class GroupedQueryAttention(nn.Module):
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear

    def __init__(self, spec: GroupedQueryAttentionSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.cache_scales: dict[str, float] = {}  # k_scale and v_scale, where the cache holds E4M3
        add_modules(self, spec.modules(hidden_size))

    def forward(self, x: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """X [B, S, H], positions [B, S] → [B, S, H]."""
        return self.o_proj(self.mix(x, positions, cache))

    def inner_inputs(self) -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
        """None: see LatentAttention."""
        return {}

    def entries(self, x: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, S, H] → keys and values [B, num_kv_heads, S, head_dim], by the name of their cache's scale."""
        key, value = (self._heads(project(x)) for project in (self.k_proj, self.v_proj))
        return {"k_scale": rotary(key, self.spec.rope, positions), "v_scale": value}

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)

    def mix(self, x: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """[B, S, H] → [B, S, heads * head_dim], what `o_proj` reads."""
        query = rotary(self._heads(self.q_proj(x)), self.spec.rope, positions)
        key, value = as_cached(self.entries(x, positions), self.cache_scales).values()
        if cache is not None:
            key, value = (part.to(x.dtype) for part in cache.append(key, value))
        mixed = causal_attention(query, key, value, self.spec.softmax_scale)
        return mixed.transpose(1, 2).flatten(2)
