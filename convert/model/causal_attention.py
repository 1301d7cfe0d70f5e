"""Softmax attention in which a query sees the keys up to its own."""

from __future__ import annotations

import torch
from torch.nn import functional


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """[B, H, S, Dv] from query [B, H, S, D], key [B, G, T, D], value [B, G, T, Dv]; G divides H, Dv <= D.

    The last query stands at the last key: query s sees keys t <= T - S + s. No [S, T] matrix is made, unless
    several queries follow earlier keys (then a boolean one, for all heads).
    """
    queries, keys, channels = query.shape[2], key.shape[2], value.shape[3]
    mask = None
    if 1 < queries < keys:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    # PyTorch's blockwise kernels want one width for key and value; without them [B, H, S, T] scores appear.
    value = functional.pad(value, (0, query.shape[3] - channels))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=1 < queries == keys, scale=scale
    )
    return mixed[..., :channels]
