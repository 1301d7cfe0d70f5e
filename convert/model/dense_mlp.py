"""SwiGLU (Shazeer 2020)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.model.linear import Linear


class DenseMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`; one dense layer, one routed expert, or the shared experts as one."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activate(x))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """What `down_proj` reads."""
        return functional.silu(self.gate_proj(x)) * self.up_proj(x)
