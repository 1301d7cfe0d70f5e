"""What rounding the head costs: the KL divergence itself, since nothing comes behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmc.convert.model import Linear, scaled_logits
from llmc.convert.spec import ModelSpec
from llmc.quant.change import ROWS, change
from llmc.quant.schemes.base import Scheme

_TOKENS = 1024  # of the text, evenly spaced: no labels are drawn, and chance has less to say


def head_losses(spec: ModelSpec, head: Linear, schemes: Sequence[Scheme], x: torch.Tensor, room: int) -> list[float]:
    """Nats per token, for each scheme, of x [n, hidden] behind the final norm, some rows of the head at a time.

    With probabilities p of the original, and logits that move by d, the divergence is log(sum p exp(d)) - sum p d. It
    is summed up as log(1 + A + B) - B with A = sum p (exp(d) - 1 - d) and B = sum p d, which loses no digits where d
    is small.
    """
    weight = head.weight if head.quantized is None else head.full()
    x = x[:: -(-len(x) // _TOKENS)]
    importance = x.square().mean(0)
    step = max(1, room // (4 * (4 * weight.shape[1] + 6 * len(x))) // ROWS) * ROWS
    blocks = [slice(start, start + step) for start in range(0, len(weight), step)]
    sums = [_logits(spec, x, weight[rows].float()).logsumexp(-1) for rows in blocks]
    whole = torch.stack(sums).logsumexp(0)[:, None]
    bent, moved = x.new_zeros(2, len(schemes), len(x), dtype=torch.float64)
    for rows in blocks:
        mine = weight[rows].float()
        z = _logits(spec, x, mine)
        p = (z - whole).exp()
        for number, scheme in enumerate(schemes):
            d = _logits(spec, x, mine + change(mine, scheme, importance)) - z
            moved[number] += (p * d).sum(-1)
            bent[number] += (p * (d.expm1() - d)).sum(-1)
    losses: list[float] = ((bent + moved).log1p() - moved).mean(-1).tolist()
    return losses


def _logits(spec: ModelSpec, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scaled_logits(spec, x @ weight.mT)
