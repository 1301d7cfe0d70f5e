"""SwiGLU and GeGLU (Shazeer 2020), and gpt-oss's SwiGLU."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.model.linear import Linear
from llmc.convert.model.modules import add_modules
from llmc.convert.spec import Activation, DenseMLPSpec


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
        if self.activation == "relu2":
            return functional.relu(self.up_proj(x)).square()
        return gated(self.gate_proj(x), self.up_proj(x), self.activation)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """What an activation makes of the two, of one shape."""
    if activation == "silu":
        return functional.silu(gate) * up
    if activation == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh") * up
    assert activation != "relu2"  # which has no gate
    gate, up = gate.clamp(max=activation.limit), up.clamp(-activation.limit, activation.limit)
    return (up + 1) * (gate * torch.sigmoid(activation.alpha * gate))
