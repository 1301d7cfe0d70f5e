"""Grouped-query attention, GQA (Ainslie et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from llmc.convert.model.cache import KeyValueCache, as_cached
from llmc.convert.model.causal_attention import attention_with_scores, causal_attention
from llmc.convert.model.linear import Linear
from llmc.convert.model.modules import Vector, add_modules
from llmc.convert.model.rotary import rotary
from llmc.convert.spec import GroupedQueryAttentionSpec


class GroupedQueryAttention(nn.Module):
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    sinks: Vector

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
        """[B, S, H] → keys and values [B, num_kv_heads, S, …], by the name of their cache's scale."""
        spec, key = self.spec, self._rotated(self._heads(self.k_proj(x), "k_norm"), positions)
        value = self.v_proj(x).unflatten(-1, (spec.num_kv_heads, -1)).transpose(1, 2)
        return {"k_scale": key, "v_scale": value if spec.value_scale == 1 else value * spec.value_scale}

    def _heads(self, x: torch.Tensor, norm: str) -> torch.Tensor:
        """[B, S, heads * D] → [B, heads, S, D], normed."""
        over = self.spec.qk_norm.over if self.spec.qk_norm else None
        if over == "all":
            x = self.get_submodule(norm)(x)
        x = x.unflatten(-1, (-1, self.spec.head_dim))
        if over == "head":
            x = self.get_submodule(norm)(x)
        return x.transpose(1, 2)

    def _rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x if self.spec.rope is None else rotary(x, self.spec.rope, positions)

    def mix(self, x: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """[B, S, H] → [B, S, heads * value_size], what `o_proj` reads."""
        spec = self.spec
        query, gate = self.q_proj(x), None
        if spec.output_gate:
            query, gate = query.unflatten(-1, (spec.num_heads, 2, -1)).unbind(-2)
            query = query.flatten(2)
        query = self._rotated(self._heads(query, "q_norm"), positions)
        if scaling := spec.query_scaling:
            steps = (positions // scaling.length).float()
            query = query * (1 + scaling.beta * steps.log1p())[:, None, :, None].to(query.dtype)
        key, value = as_cached(self.entries(x, positions), self.cache_scales).values()
        if cache is not None:
            key, value = (part.to(x.dtype) for part in cache.append(key, value))
        if spec.softcap is None and not spec.sinks:
            mixed = causal_attention(query, key, value, spec.softmax_scale, spec.window)
        else:
            sinks = self.sinks.weight if spec.sinks else None
            mixed = attention_with_scores(query, key, value, spec.softmax_scale, spec.window, spec.softcap, sinks)
        mixed = mixed.transpose(1, 2).flatten(2)
        return mixed if gate is None else mixed * gate.flatten(2).sigmoid()
