"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan 2024)."""

import torch
import torch.distributed as dist
from torch import Tensor


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices by five Newton–Schulz steps, batched: [N, a, b] -> [N, a, b]."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class Muon:
    """Momentum, orthogonalised per matrix; the matrices are shared out among the processes."""

    def __init__(self, parameters: list[Tensor], rank: int, processes: int) -> None:
        self.parameters, self.rank, self.processes = parameters, rank, processes
        self.momentum = [torch.zeros_like(p) for p in parameters]
        self.update = torch.zeros(sum(p.numel() for p in parameters))
        sizes = [p.numel() for p in parameters]
        self.views = [u.view_as(p) for u, p in zip(self.update.split(sizes), parameters, strict=True)]

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        self.update.zero_()
        shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for p, m, u in zip(self.parameters, self.momentum, self.views, strict=True):
            m.lerp_(p.grad, 0.05)
            nesterov = p.grad.lerp(m, 0.95)
            pairs = zip(nesterov.view(-1, *p.shape[-2:]), u.view(-1, *p.shape[-2:]), strict=True)
            shapes.setdefault(p.shape[-2:], []).extend(pairs)
        for (rows, columns), pairs in shapes.items():
            mine = pairs[self.rank :: self.processes]
            if mine:
                scale = max(1.0, rows / columns) ** 0.5
                for (_, out), value in zip(mine, orthogonalise(torch.stack([g for g, _ in mine])), strict=True):
                    out.copy_(value * scale)
        dist.all_reduce(self.update)
        for p, u in zip(self.parameters, self.views, strict=True):
            p.mul_(1 - rate * decay).sub_(u, alpha=rate)
