"""Routed experts and a shared one (DeepSeekMoE, Dai et al. 2024)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.model.dense_mlp import DenseMLP
from llmc.convert.model.grouped_topk import GroupedTopK
from llmc.convert.model.modules import Vector
from llmc.convert.spec import MixtureOfExpertsSpec


class MixtureOfExperts(nn.Module):
    """An expert is called once with all its tokens, and not at all when it has none."""

    def __init__(self, spec: MixtureOfExpertsSpec, hidden_size: int) -> None:
        super().__init__()
        self.gate = GroupedTopK(spec.router, hidden_size)
        width = spec.latent_size or hidden_size
        self.experts = nn.ModuleList(DenseMLP(spec.expert, width) for _ in range(spec.router.num_experts))
        self.fc1_latent_proj = Vector(width, hidden_size) if spec.latent_size else None
        self.fc2_latent_proj = Vector(hidden_size, width) if spec.latent_size else None
        self.shared_experts = DenseMLP(spec.shared_experts, hidden_size) if spec.shared_experts else None
        self.shared_expert_gate = Vector(1, hidden_size) if spec.shared_gate else None

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """X [N, H] → expert index [N, K] int64, weight [N, K] float32."""
        return self.gate(x)

    def entering(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., H] → what routed experts read."""
        return x if self.fc1_latent_proj is None else functional.linear(x, self.fc1_latent_proj.weight.to(x.dtype))

    def leaving(self, x: torch.Tensor) -> torch.Tensor:
        """What routed experts make, or a sum of it → [..., H]."""
        return x if self.fc2_latent_proj is None else functional.linear(x, self.fc2_latent_proj.weight.to(x.dtype))

    def shared_weight(self, x: torch.Tensor) -> torch.Tensor | None:
        """X [..., H] → what the shared expert's output for each token is multiplied by [..., 1]; None: nothing."""
        if self.shared_expert_gate is None:
            return None
        return functional.linear(x.float(), self.shared_expert_gate.weight.float()).sigmoid().to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X [B, S, H] → [B, S, H]; the sum over experts is taken in float32."""
        tokens = x.flatten(0, -2)
        index, weight = self.route(tokens)
        tokens = self.entering(tokens)
        mixed = torch.zeros_like(tokens, dtype=torch.float32)
        for number in index.unique().tolist():
            row, slot = torch.where(index == number)
            mixed.index_add_(0, row, self.experts[number](tokens[row]).float() * weight[row, slot, None])
        result = self.leaving(mixed.to(x.dtype)).view_as(x)
        if self.shared_experts is None:
            return result
        shared, share = self.shared_experts(x), self.shared_weight(x)
        return result + (shared if share is None else shared * share)
