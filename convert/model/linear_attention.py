"""Linear attention with a state that forgets, a chunk of tokens at a time: what Gated DeltaNet and Mamba-2 share."""

from __future__ import annotations

import torch

CHUNK = 64  # tokens


def decays(forgotten: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logarithms [B, heads, C] of what is kept at each token of a chunk: since it began [B, heads, C], and what is
    left at token i of what came in at j <= i [B, heads, C, C], itself no logarithm.
    """
    total = forgotten.cumsum(-1)
    return total, (total[..., :, None] - total[..., None, :]).tril().exp().tril()


def read_chunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    total: torch.Tensor,
    between: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What queries read after each token, and the state behind the chunk: token by token `S = kept * S + key^T value`,
    then `query S`.

    Args:
        query: [B, heads, C, key_dim]
        key: the same shape
        value: [B, heads, C, value_dim]
        total: see `decays`
        between: see `decays`
        state: [B, heads, key_dim, value_dim]

    Returns:
        [B, heads, C, value_dim], and the state
    """
    read = (query * total.exp()[..., None]) @ state + (query @ key.transpose(-1, -2) * between) @ value
    last = total[..., -1:]
    kept = (key * (last - total).exp()[..., None]).transpose(-1, -2)
    return read, state * last.exp()[..., None] + kept @ value
