"""Rotary position embedding (RoFormer, Su et al. 2021)."""

from __future__ import annotations

import torch

from llmc.convert.spec import RopeSpec


def rotary_table(rope: RopeSpec, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, 1, S, dim / 2] in float32 for positions [B, S]; the 1 stands for heads."""
    frequencies = torch.tensor(rope.inverse_frequencies, device=positions.device)
    if rope.long is not None:
        beyond = positions.amax(1)[:, None, None, None] >= rope.long.length
        long = torch.tensor(rope.long.inverse_frequencies, device=positions.device)
        frequencies = torch.where(beyond, long, frequencies)
    angles = positions[:, None, :, None].float() * frequencies
    return angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor


def rotary(x: torch.Tensor, rope: RopeSpec, positions: torch.Tensor) -> torch.Tensor:
    """Rotates x [B, heads, S, dim] at positions [B, S].

    The result is in halves whatever the input: channel i of the first half and channel i of the second are a
    pair. Interleaved input pairs (0, 1), (2, 3)… come out as (0, dim/2), (1, dim/2 + 1)…; query and key are
    permuted alike, so scores do not change. A cached key is in this order. Channels behind the first `rope.dim` stay
    as they are.
    """
    x, rest = x.split((rope.dim, x.shape[-1] - rope.dim), dim=-1)
    first, second = (x[..., 0::2], x[..., 1::2]) if rope.interleaved else x.chunk(2, dim=-1)
    cos, sin = rotary_table(rope, positions)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)
