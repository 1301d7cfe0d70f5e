"""What blocks have in common that remember a text in a state: they take the place of attention in a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from llmc.convert.model.cache import StateCache
from llmc.convert.model.linear import Linear
from llmc.convert.model.modules import Convolution, Vector, add_modules
from llmc.convert.model.rms_norm import RMSNorm
from llmc.convert.spec import StateSpec


class StateBlock(nn.Module):
    """A block that has `mix`; positions do not matter to it."""

    conv1d: Convolution
    dt_bias: Vector
    A_log: Vector
    norm: RMSNorm
    out_proj: Linear

    def __init__(self, spec: StateSpec, hidden_size: int) -> None:
        super().__init__()
        self.cache_scales: dict[str, float] = {}  # there is no cache
        add_modules(self, spec.modules(hidden_size))

    def mix(self, x: torch.Tensor, positions: torch.Tensor, cache: StateCache | None = None) -> torch.Tensor:
        """[B, S, H] → [B, S, output_size], what `out_proj` reads."""
        raise NotImplementedError

    def by_head(self, convolved: torch.Tensor, *parts: tuple[int, int]) -> Iterator[torch.Tensor]:
        """[B, S, channels] → [B, heads, S, channels of a head] float32, for parts that follow each other.

        Args:
            parts: (channels, channels of a head) of each
        """
        sizes = [channels for channels, _ in parts]
        for part, (_, of_head) in zip(convolved.split(sizes, dim=-1), parts, strict=True):
            yield part.unflatten(-1, (-1, of_head)).transpose(1, 2).float()

    def forward(self, x: torch.Tensor, positions: torch.Tensor, cache: StateCache | None = None) -> torch.Tensor:
        """X [B, S, H] → [B, S, H]."""
        return self.out_proj(self.mix(x, positions, cache))

    def inner_inputs(self) -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
        """None: see LatentAttention."""
        return {}

    def entries(self, x: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """None: nothing is cached per token."""
        return {}
