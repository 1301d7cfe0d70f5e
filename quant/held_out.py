"""Judges what a solver found on tokens that it did not see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llmc.quant.gptq import NOISE, Quantized
from llmc.quant.hessian import HeldOut
from llmc.quant.two_sided import damped

_FEWEST = 16  # tokens to judge by


class Judgment(NamedTuple):
    """Of the layers of one matrix: relative squared errors of what they say of the tokens held out, and of the same
    scales with every weight rounded to nearest; and whether the former is larger.
    """

    error: list[float]
    nearest_error: list[float]
    overfits: list[bool]


@torch.no_grad()
def judge(
    result: Quantized,
    number: int,
    weight: torch.Tensor,
    held_out: HeldOut | None,
    rows: Sequence[int],
    output_hessian: Sequence[torch.Tensor] = (),
) -> Judgment | None:
    """Rounds those layers of matrix `number` of a result to nearest, in place, that overfit.

    Args:
        weight: [out, in], of that matrix
        held_out: None, too few tokens, or groups that lie anywhere: nothing is judged, and None returned
        rows: how many each layer has that lies there
        output_hessian: blocks by which errors of outputs are weighted, see `solve_two_sided`; (): all alike
    """
    scheme, shape = result.scheme, (weight.shape[0], weight.shape[1])
    if held_out is None or held_out.tokens < _FEWEST or scheme.dynamic_groups:
        return None
    x = torch.cat(held_out.x)
    wanted = x @ weight.mT
    if held_out.away:
        wanted += torch.cat(held_out.away) @ weight.mT
    zero_points = None if result.zero_points is None else result.zero_points[number]
    scales = scheme.expand(result.scales[number], shape)
    zeros = None if zero_points is None else scheme.expand(zero_points, shape)
    steps = scheme.round_(weight / scales, zeros)
    blocks = [damped(block) for block in output_hessian]

    def lost(change: torch.Tensor) -> torch.Tensor:
        """[P] of changes of outputs [n, out]."""
        if blocks:
            parts = zip(change.split([len(block) for block in blocks], 1), blocks, strict=True)
            change = torch.cat([(part @ block) * part for part, block in parts], 1)
        else:
            change = change.square()
        return torch.stack([part.sum() for part in change.split(list(rows), 1)])

    found = result.weight(number).dequantize()
    mine, nearest = lost(x @ found.mT - wanted), lost(x @ (scales * steps).mT - wanted)
    whole = lost(wanted).clamp_min(torch.finfo(torch.float32).tiny)
    overfits = (mine > (1 + NOISE[0]) * nearest + NOISE[1] * whole).tolist()
    codes, start = scheme.to_codes(steps, zeros), 0
    for count, overfit in zip(rows, overfits, strict=True):
        part = slice(start, start := start + count)
        if overfit:
            result.qweight[number, part] = codes[part].to(result.qweight.dtype)
    return Judgment((mine / whole).tolist(), (nearest / whole).tolist(), overfits)
