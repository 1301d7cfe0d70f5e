"""What a layer remembers of the tokens it has seen: preallocated, written in place.

`length` entries of each row are valid. Rolling back is setting `length` to a smaller number.
"""

from __future__ import annotations

import torch

from llmc.convert.quantized_weight import round_to_fp8
from llmc.convert.spec import (
    AbsentSpec,
    AttentionSpec,
    GatedDeltaNetSpec,
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    Mamba2Spec,
    StateSpec,
)


class LatentCache:
    """latent [B, 1, T, R + P]: `kv_a_layernorm`'s output, then the rotated shared key in halves."""

    def __init__(self, batch: int, capacity: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        self.latent = torch.zeros(batch, 1, capacity, width, dtype=dtype)
        self.length = 0

    def append(self, latent: torch.Tensor) -> torch.Tensor:
        """Writes [B, 1, S, R + P] behind what is there; returns a view of all valid entries."""
        start, self.length = self.length, self.length + latent.shape[2]
        self.latent[:, :, start : self.length] = latent
        return self.latent[:, :, : self.length]


class KeyValueCache:
    """key (rotated, in halves) [B, num_kv_heads, T, head_dim] and value [B, num_kv_heads, T, value_size]."""

    def __init__(
        self, attention: GroupedQueryAttentionSpec, batch: int, capacity: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.key, self.value = (
            torch.zeros(batch, heads, capacity, channels, dtype=dtype)
            for heads, channels in attention.cache_entry().values()
        )
        self.length = 0

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes [B, num_kv_heads, S, …] behind what is there; returns views of all valid entries."""
        start, self.length = self.length, self.length + key.shape[2]
        self.key[:, :, start : self.length] = key
        self.value[:, :, start : self.length] = value
        return self.key[:, :, : self.length], self.value[:, :, : self.length]


class StateCache:
    """What Gated DeltaNet and Mamba-2 remember: state [B, heads, key_dim, value_dim] in float32, and the last
    conv_width - 1 tokens of what is convolved [B, channels, conv_width - 1].

    `length` only counts: there is no rolling back.
    """

    def __init__(self, attention: StateSpec, batch: int, dtype: torch.dtype = torch.float32) -> None:
        self.state = torch.zeros(batch, *attention.state_shape)
        self.convolved = torch.zeros(batch, attention.convolved_size, attention.conv_width - 1, dtype=dtype)
        self.length = 0


class NoCache:
    """Of a layer that looks at nothing but the token itself."""

    length = 0


def as_cached(entries: dict[str, torch.Tensor], scales: dict[str, float]) -> dict[str, torch.Tensor]:
    """What is left of new entries in the cache, both by the name of their scale; without scales, all."""
    return {name: round_to_fp8(x, scales[name]) if scales else x for name, x in entries.items()}


LayerCache = LatentCache | KeyValueCache | StateCache | NoCache


def layer_cache(attention: AttentionSpec, batch: int, capacity: int, dtype: torch.dtype = torch.float32) -> LayerCache:
    """An empty cache for a layer with this attention."""
    if isinstance(attention, LatentAttentionSpec):
        return LatentCache(batch, capacity, attention.kv_lora_rank + attention.qk_rope_head_dim, dtype)
    if isinstance(attention, GatedDeltaNetSpec | Mamba2Spec):
        return StateCache(attention, batch, dtype)
    if isinstance(attention, AbsentSpec):
        return NoCache()
    return KeyValueCache(attention, batch, capacity, dtype)
