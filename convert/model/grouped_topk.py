"""Group-limited top-k routing (DeepSeek-V3, section 2.1.2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.spec import RouterSpec


class GroupedTopK(nn.Module):
    """Chooses experts in float32, whatever the dtype of the model: a rounded score is another expert.

    Only the `top_k_groups` groups with the largest sum of their two best scores, or the best one, take part. The
    correction bias moves the choice, never the weight of what was chosen; a bias of the scores does both.
    """

    def __init__(self, spec: RouterSpec, hidden_size: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(spec.num_experts, hidden_size))
        if spec.bias:
            self.bias = nn.Parameter(torch.zeros(spec.num_experts))
        if spec.selection_bias:
            self.e_score_correction_bias = nn.Parameter(torch.zeros(spec.num_experts))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """X [N, H] → expert index [N, K] int64 and its weight [N, K] float32, best first."""
        spec = self.spec
        logits = functional.linear(x.float(), self.weight.float(), self.bias.float() if spec.bias else None)
        scores = logits.sigmoid() if spec.scoring == "sigmoid" else logits.softmax(-1)
        choice = scores + self.e_score_correction_bias.float() if spec.selection_bias else scores
        if spec.num_groups > 1:
            groups = choice.unflatten(-1, (spec.num_groups, -1))  # [N, groups, experts of the group]
            count = 2 if spec.group_score == "best two" else 1
            best = groups.topk(count, dim=-1).values.sum(-1).topk(spec.top_k_groups, dim=-1).indices
            excluded = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, False)
            choice = groups.masked_fill(excluded[..., None], -torch.inf).flatten(-2)
        index = choice.topk(spec.top_k, dim=-1).indices
        weight = scores.gather(-1, index)
        if spec.normalize:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return index, weight * spec.scaling_factor
