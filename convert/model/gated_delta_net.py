"""Gated DeltaNet (Yang et al. 2025): linear attention whose state forgets, and only takes in what it does not know."""

from __future__ import annotations

import torch
from torch.nn import functional

from llmc.convert.model.cache import StateCache
from llmc.convert.model.linear import Linear
from llmc.convert.model.linear_attention import CHUNK, decays, read_chunk
from llmc.convert.model.state_block import StateBlock
from llmc.convert.spec import GatedDeltaNetSpec

_EPS = 1e-6  # of the lengths that queries and keys are divided by


class GatedDeltaNet(StateBlock):
    in_proj_qkvz: Linear  # or the four after the next
    in_proj_ba: Linear
    in_proj_qkv: Linear
    in_proj_z: Linear
    in_proj_b: Linear
    in_proj_a: Linear

    def __init__(self, spec: GatedDeltaNetSpec, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.spec = spec

    def mix(self, x: torch.Tensor, positions: torch.Tensor, cache: StateCache | None = None) -> torch.Tensor:
        """[B, S, H] → [B, S, heads * value_dim], what `out_proj` reads."""
        spec = self.spec
        convolved, z, b, a = self._projected(x)
        convolved = functional.silu(self.conv1d(convolved, cache))
        keys = spec.key_size, spec.key_dim
        query, key, value = self.by_head(convolved, keys, keys, (spec.output_size, spec.value_dim))
        shared = spec.num_value_heads // spec.num_key_heads
        query, key = (_unit(part).repeat_interleave(shared, dim=1) for part in (query, key))
        decay = -self.A_log.weight.float().exp() * functional.softplus(a.float() + self.dt_bias.weight.float())
        state = None if cache is None else cache.state
        mixed, state = gated_delta_rule(
            query * spec.key_dim**-0.5,
            key,
            value,
            decay.transpose(1, 2),
            b.float().sigmoid().transpose(1, 2),
            state,
        )
        if cache is not None:
            cache.state, cache.length = state, cache.length + x.shape[1]
        normed = self.norm(mixed.transpose(1, 2).to(x.dtype))
        return (normed * functional.silu(z.float())).to(x.dtype).flatten(2)

    def _projected(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What is convolved [B, S, channels], the gates of the output z [B, S, heads, value_dim], and of what strength
        an update has and what is forgotten before it, b and a [B, S, heads].
        """
        spec = self.spec
        if not spec.fused:
            z = self.in_proj_z(x).unflatten(-1, (spec.num_value_heads, -1))
            return self.in_proj_qkv(x), z, self.in_proj_b(x), self.in_proj_a(x)
        values = spec.output_size // spec.num_key_heads  # channels of the value heads that belong to a key head
        by_head = self.in_proj_qkvz(x).unflatten(-1, (spec.num_key_heads, -1))
        *convolved, z = by_head.split((spec.key_dim, spec.key_dim, values, values), dim=-1)
        b, a = self.in_proj_ba(x).unflatten(-1, (spec.num_key_heads, 2, -1)).unbind(-2)
        mixed = torch.cat([part.flatten(2) for part in convolved], dim=-1)
        return mixed, z.flatten(2).unflatten(-1, (spec.num_value_heads, -1)), b.flatten(2), a.flatten(2)


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    strength: torch.Tensor,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What every query reads from the state after its own token's update, and the last state.

    Token by token (Yang et al. 2025, equation 10, transposed): `S = exp(decay) * S`, then
    `S = S + key^T * strength * (value - key S)`, then `query S`. The updates of a chunk depend on each other through a
    triangular system [C, C], which is solved; states are passed from chunk to chunk, in time linear in S.

    Args:
        query: [B, heads, S, key_dim] float32, scaled
        key: the same shape, of length one
        value: [B, heads, S, value_dim]
        decay: [B, heads, S], logarithms, at most 0
        strength: [B, heads, S], 0 to 1
        state: [B, heads, key_dim, value_dim]; None: nothing is remembered

    Returns:
        [B, heads, S, value_dim], and the state
    """
    if state is None:
        state = query.new_zeros(*query.shape[:2], query.shape[-1], value.shape[-1])
    read = []
    for start in range(0, query.shape[2], CHUNK):
        q, k, v, forgotten, beta = (x[:, :, start : start + CHUNK] for x in (query, key, value, decay, strength))
        total, between = decays(forgotten)
        system = beta[..., None] * (k @ k.transpose(-1, -2)) * between
        news = beta[..., None] * (v - total.exp()[..., None] * (k @ state))
        updates = torch.linalg.solve_triangular(system, news, upper=False, unitriangular=True)
        result, state = read_chunk(q, k, updates, total, between, state)
        read.append(result)
    return torch.cat(read, dim=2), state


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Divides by the length of the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)
