"""Softmax attention in which a query sees the keys up to its own."""

from __future__ import annotations

import torch
from torch.nn import functional


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """[B, H, S, Dv] from query [B, H, S, D], key [B, G, T, D] and value [B, G, T, Dv]; G divides H.

    The last query stands at the last key: query s sees keys t <= T - S + s. No [S, T] matrix is made, unless
    several queries follow earlier keys (then a boolean one, for all heads).
    """
    queries, keys, channels = query.shape[2], key.shape[2], value.shape[3]
    mask = None
    if 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    # PyTorch's blockwise kernels want one width; without them [B, H, S, T] scores appear.
    width = max(query.shape[3], channels)
    query, key, value = (
        part if part.shape[3] == width else functional.pad(part, (0, width - part.shape[3]))
        for part in (query, key, value)
    )
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=1 < queries == keys, scale=scale, enable_gqa=True
    )
    return mixed[..., :channels]
