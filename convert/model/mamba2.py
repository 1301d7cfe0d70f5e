"""Mamba-2 (Dao & Gu 2024): linear attention whose state forgets, each head's at a pace of its own."""

from __future__ import annotations

import torch
from torch.nn import functional

from llmc.convert.model.cache import StateCache
from llmc.convert.model.linear import Linear
from llmc.convert.model.linear_attention import CHUNK, decays, read_chunk
from llmc.convert.model.modules import Vector
from llmc.convert.model.state_block import StateBlock
from llmc.convert.spec import Mamba2Spec


class Mamba2(StateBlock):
    in_proj: Linear
    D: Vector

    def __init__(self, spec: Mamba2Spec, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.spec = spec

    def mix(self, x: torch.Tensor, positions: torch.Tensor, cache: StateCache | None = None) -> torch.Tensor:
        """[B, S, H] → [B, S, heads * head_dim], what `out_proj` reads."""
        spec = self.spec
        gate, convolved, step = self.in_proj(x).split((spec.output_size, spec.convolved_size, spec.num_heads), dim=-1)
        convolved = functional.silu(self.conv1d(convolved, cache))
        shared = spec.num_groups * spec.key_dim
        parts = (spec.output_size, spec.head_dim), (shared, spec.key_dim), (shared, spec.key_dim)
        value, key, query = self.by_head(convolved, *parts)
        key, query = (part.repeat_interleave(spec.num_heads // spec.num_groups, dim=1) for part in (key, query))
        step = functional.softplus(step.float() + self.dt_bias.weight.float()).clamp(min=spec.least_step)
        step = step.transpose(1, 2)
        forgotten = -self.A_log.weight.float().exp()[:, None] * step
        mixed, state = state_space(
            query, key, value * step[..., None], forgotten, None if cache is None else cache.state
        )
        if cache is not None:
            cache.state, cache.length = state, cache.length + x.shape[1]
        mixed = (mixed + self.D.weight.float()[:, None, None] * value).transpose(1, 2).flatten(2)
        return self._normed(mixed * functional.silu(gate.float())).to(x.dtype)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, heads * head_dim], the heads of each group by themselves."""
        groups = x.unflatten(-1, (self.spec.num_groups, -1))
        groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.spec.norm_eps)
        return self.norm.weight.float() * groups.flatten(-2)


def state_space(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, decay: torch.Tensor, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What every query reads from the state after its own token came in, and the last state, in time linear in S.

    Token by token (Dao & Gu 2024, section 6): `S = exp(decay) * S + key^T value`, then `query S`.

    Args:
        query: [B, heads, S, key_dim] float32, in the paper C
        key: the same shape, in the paper B
        value: [B, heads, S, value_dim], in the paper X
        decay: [B, heads, S], logarithms, at most 0
        state: [B, heads, key_dim, value_dim]; None: nothing is remembered

    Returns:
        [B, heads, S, value_dim], and the state
    """
    if state is None:
        state = query.new_zeros(*query.shape[:2], query.shape[-1], value.shape[-1])
    read = []
    for start in range(0, query.shape[2], CHUNK):
        q, k, v, forgotten = (x[:, :, start : start + CHUNK] for x in (query, key, value, decay))
        result, state = read_chunk(q, k, v, *decays(forgotten), state)
        read.append(result)
    return torch.cat(read, dim=2), state
