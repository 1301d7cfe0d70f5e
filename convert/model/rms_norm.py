"""Root-mean-square normalization."""

from __future__ import annotations

import torch
from torch import nn

from llmc.convert.spec import NormSpec


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, in float32 (Zhang & Sennrich 2019); with
    `unit_offset`, by `1 + weight`.
    """

    def __init__(self, spec: NormSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(spec.size))
        self.eps, self.unit_offset = spec.eps, spec.unit_offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.unit_offset:  # Gemma rounds what comes of it
            return (wide * (1 + self.weight.float())).to(x.dtype)
        return self.weight * wide.to(x.dtype)
