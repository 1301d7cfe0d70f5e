"""SwiGLU (Shazeer 2020)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.model.linear import Linear
from llmc.convert.model.modules import add_modules
from llmc.convert.spec import DenseMLPSpec


class DenseMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`; one dense layer, one routed expert, or the shared experts as one."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear

    def __init__(self, spec: DenseMLPSpec, hidden_size: int) -> None:
        super().__init__()
        add_modules(self, spec.modules(hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activate(x))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """What `down_proj` reads."""
        return functional.silu(self.gate_proj(x)) * self.up_proj(x)
