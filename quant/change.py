"""What rounding to nearest does to a weight."""

from __future__ import annotations

import torch

from llmc.quant.schemes.base import Scheme

# In blocks of so many rows a matrix may be worked on: scales belong to as many at most, or to all, in which case those
# of a block say almost the same.
ROWS = 128


def change(weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[out, in], what rounding to nearest adds to weight [out, in], with the scales that the solver would take."""
    shape = (weight.shape[0], weight.shape[1])
    scales, zeros = scheme.grid(weight, importance)
    wide = scheme.expand(scales, shape)
    steps = scheme.round_(weight / wide, None if zeros is None else scheme.expand(zeros, shape))
    return steps.mul_(wide).sub_(weight)
