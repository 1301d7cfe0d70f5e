"""Softmax attention in which a query sees the keys up to its own."""

from __future__ import annotations

import torch
from torch.nn import functional


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None = None
) -> torch.Tensor:
    """[B, H, S, Dv] from query [B, H, S, D], key [B, G, T, D] and value [B, G, T, Dv]; G divides H.

    The last query stands at the last key: query s sees keys t <= T - S + s, and of those the last `window`. No [S, T]
    matrix is made, unless several queries follow earlier keys or cannot see all (then a boolean one, for all heads).
    """
    queries, keys, channels = query.shape[2], key.shape[2], value.shape[3]
    mask = None
    if 1 < queries < keys or (window is not None and window < keys):
        mask = _visible(queries, keys, window, query.device)
    # PyTorch's blockwise kernels want one width; without them [B, H, S, T] scores appear.
    width = max(query.shape[3], channels)
    query, key, value = (
        part if part.shape[3] == width else functional.pad(part, (0, width - part.shape[3]))
        for part in (query, key, value)
    )
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None and queries > 1, scale=scale, enable_gqa=True
    )
    return mixed[..., :channels]


def attention_with_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same, of scores that are capped, or stand beside a score [H] of each head for nothing: all are made."""
    queries, keys, shared = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    scores = query.float() @ key.float().repeat_interleave(shared, 1).transpose(2, 3) * scale
    if softcap is not None:
        scores = (scores / softcap).tanh_() * softcap
    scores = scores.masked_fill_(~_visible(queries, keys, window, query.device), -torch.inf)
    if sinks is not None:
        beside = sinks.float()[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, beside), dim=-1)
    weights = scores.softmax(-1)[..., :keys].to(value.dtype)
    return weights @ value.repeat_interleave(shared, 1)


def _visible(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[S, T] bool."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)
