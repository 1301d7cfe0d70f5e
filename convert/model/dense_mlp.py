"""SwiGLU and GeGLU (Shazeer 2020)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.model.linear import Linear
from llmc.convert.model.modules import add_modules
from llmc.convert.spec import DenseMLPSpec


class DenseMLP(nn.Module):
    """`down(activation(gate(x)) * up(x))`; one dense layer, one routed expert, or the shared experts as one."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear

    def __init__(self, spec: DenseMLPSpec, hidden_size: int) -> None:
        super().__init__()
        self.activation = spec.activation
        add_modules(self, spec.modules(hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activate(x))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """What `down_proj` reads."""
        gate: torch.Tensor = self.gate_proj(x)
        active = functional.silu(gate) if self.activation == "silu" else functional.gelu(gate, approximate="tanh")
        return active * self.up_proj(x)
