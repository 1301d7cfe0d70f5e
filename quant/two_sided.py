"""Two-sided rounding (YAQA, Tseng et al. 2025): errors are fed back to the columns and to the rows that are still free.

What a change dW of a layer's weights does to the model's own distribution is about tr(G dW H dW'), with H the sum of
x x' over its inputs and G that of g g' over the gradients of the log-likelihood with respect to its outputs. With
H = R D R' and G = S F S', R and S unit upper triangular, that is the weighted sum of squares of S' dW R; each weight is
rounded such that its entry there, given what is above and left of it, is as small as it can be.

A weight waits for those above and left of it alone. So a whole anti-diagonal is rounded at once: of square blocks,
between which products of matrices carry the sums, and of weights inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch.nn import functional

from llmc.quant.gptq import ASYMMETRY, NOISE, Quantized, columns_by, of_rows, upper_factor
from llmc.quant.schemes.base import QuantParams, Scheme

# Of the mean diagonal. Gradients of single tokens are noisy, and 0.3 to 1 measured alike; 0.1 and 3 are worse.
OUTPUT_DAMPING = 1.0
_SOME = 1e-6  # damping of what has been damped
_SIDE = 32  # rows and columns of a block


@torch.no_grad()
def solve_two_sided(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    output_hessian: Sequence[torch.Tensor],
    scheme: Scheme,
    cross_covariance: torch.Tensor | None = None,
    rows: Sequence[int] = (),
) -> Quantized:
    """Quantizes [E, out, in] weights so that what the model says of the calibration text changes least.

    Like `gptq.solve`, whose arguments those of the same names are; with a cross covariance its target is what errors
    are counted from. Rows are fixed in order of the output Hessian's falling diagonal, as columns are in that of the
    Hessian's. Errors in the result are tr(G dW H dW'), relative to that of the weight, and so is what decides whether a
    layer is rounded to nearest. Dynamic groups get their scales before anything is moved.

    Args:
        output_hessian: the blocks on G's diagonal, [n, n] from the first row on, for all experts; what lies outside of
            them counts as zero. No block has rows of two layers. A common factor of a block does not matter.
    """
    weight, hessian = weight.float(), hessian.float()
    experts, out, _ = weight.shape
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    dead = diagonal <= 0
    upper, damping = upper_factor(_permuted(hessian, order), dead.gather(-1, order))
    dead, diagonal, order = (each.expand(experts, -1) for each in (dead, diagonal, order))
    damping, back = damping.expand(experts), order.argsort(dim=-1)
    wanted = weight.masked_fill(dead[:, None], 0.0)
    if cross_covariance is not None:
        shift = columns_by(order, wanted @ cross_covariance).mT
        shift = torch.linalg.solve_triangular(upper, shift, upper=True)
        shift = torch.linalg.solve_triangular(upper.mT, shift, upper=False)
        shift = shift.masked_fill(damping.isinf()[:, None, None], 0.0)
        wanted = wanted.add_(columns_by(back, shift.mT), alpha=ASYMMETRY)
        del shift
    grid, scales, zeros, groups = _grid(scheme, wanted, diagonal, order)
    side = _Side.of_columns(upper / upper.diagonal(dim1=-2, dim2=-1)[:, None])
    del upper
    steps, blocks = torch.empty_like(weight), [damped(block) for block in output_hessian]
    start = 0
    # Blocks of one size are independent of each other: those of a single matrix are worked on together.
    for _, same in groupby(enumerate(blocks), lambda each: (len(each[1]), each[0] if experts > 1 else 0)):
        some = torch.stack([block for _, block in same])
        end = start + some.shape[0] * some.shape[1]
        part = (slice(None), slice(start, end))
        given = scales[part], None if zeros is None else zeros[part]
        steps[part] = _fix(scheme, wanted[part], *given, order, some, side)
        start = end
    del side
    nearest = scheme.round_(weight.masked_fill(dead[:, None], 0.0).div_(scales), zeros)
    heights = list(rows or (out,))

    def lost(change: torch.Tensor) -> torch.Tensor:
        """[E, P], tr(G dW H dW') of each layer."""
        seen, starts = change @ hessian, [0, *torch.tensor([len(block) for block in blocks]).cumsum(0).tolist()]
        for block, at in zip(blocks, starts, strict=False):
            seen[:, at : at + len(block)] *= block @ change[:, at : at + len(block)]
        return torch.stack([part.sum((-2, -1)) for part in seen.split(heights, 1)], -1)

    mine, plain = lost((scales * steps).sub_(wanted)), lost((scales * nearest).sub_(wanted))
    whole = lost(weight)
    without_factor = damping.isinf()[:, None].expand_as(mine)
    rounded = (mine > (1 + NOISE[0]) * plain + NOISE[1] * whole) & ~without_factor
    if (as_they_are := rounded | without_factor).any():
        steps = torch.where(of_rows(as_they_are, heights)[..., None], nearest, steps)
    error, plain = (torch.where(whole > 0, each / whole, 0.0) for each in (mine.where(~as_they_are, plain), plain))
    return Quantized(scheme.to_codes(steps, zeros), *grid, groups, order, error, plain, rounded, damping, scheme)


def _grid(
    scheme: Scheme, wanted: torch.Tensor, diagonal: torch.Tensor, order: torch.Tensor
) -> tuple[QuantParams, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The grid for [E, out, in], its scales and zeros for every weight, and the group of every channel if dynamic."""
    shape, back = (wanted.shape[1], wanted.shape[2]), order.argsort(dim=-1)
    if not scheme.dynamic_groups:
        grid, groups = scheme.grid(wanted, diagonal), None
    else:
        grid = scheme.grid(columns_by(order, wanted), diagonal.gather(-1, order))
        groups = (back // scheme.block(shape)[1]).int()

    def wide(x: torch.Tensor) -> torch.Tensor:
        each = scheme.expand(x, shape)
        return columns_by(back, each) if scheme.dynamic_groups else each

    return grid, wide(grid.scales), None if grid.zero_points is None else wide(grid.zero_points), groups


def damped(block: torch.Tensor) -> torch.Tensor:
    """[n, n] over its mean diagonal, damped; one that is zero knows nothing, and becomes the identity."""
    mean = block.diagonal().mean()
    block = block.float() / mean if mean > 0 else torch.zeros_like(block, dtype=torch.float32)
    block.diagonal().add_(OUTPUT_DAMPING if mean > 0 else 1.0)
    return block


def _permuted(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """[E, n, n] with rows and columns in order [E, n]."""
    rows = matrix.gather(-2, order[:, :, None].expand_as(matrix))
    return columns_by(order, rows)


def _fix(
    scheme: Scheme,
    target: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    order: torch.Tensor,
    blocks: torch.Tensor,
    columns: _Side,
) -> torch.Tensor:
    """Steps [E, rows, in] of rows with output Hessians [B, n, n], below each other; B is 1, or E is."""
    shape = (max(len(target), len(blocks)), blocks.shape[-1], target.shape[-1])
    rank = blocks.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    upper, _ = upper_factor(_permuted(blocks, rank), torch.zeros_like(rank, dtype=torch.bool), _SOME)
    rows = _Side.of_rows(upper / upper.diagonal(dim1=-2, dim2=-1)[:, None])
    order, rank = order.expand(shape[0], -1), rank.expand(shape[0], -1)

    def by(order: torch.Tensor, rank: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return columns_by(order, x.gather(-2, rank[:, :, None].expand_as(x)))

    given = [None if x is None else by(order, rank, x.reshape(shape)) for x in (scales, zeros)]
    assert given[0] is not None
    steps = _feed_back(scheme, by(order, rank, target.reshape(shape)), given[0], given[1], rows, columns)
    return by(order.argsort(dim=-1), rank.argsort(dim=-1), steps).view_as(target)


class _Side(NamedTuple):
    """A unit upper factor [E, n, n] (or 1 for all) as blocks read it, n padded to whole ones.

    Attributes:
        far: of rows [E, K, side, n], how much of earlier rows' errors each gets; of columns [E, K, n, side], from the
            last block on
        near: [E, K, side, side], of each row or column the same inside its block; columns from the last one on
    """

    far: torch.Tensor
    near: torch.Tensor

    @classmethod
    def of_rows(cls, factor: torch.Tensor) -> _Side:
        far, near = _blocks(factor)
        return cls(far.mT.contiguous(), near.mT.contiguous())

    @classmethod
    def of_columns(cls, factor: torch.Tensor) -> _Side:
        far, near = _blocks(factor)
        return cls(far.flip(1), near.mT.flip(1, 2).contiguous())


def _blocks(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, n, n] → [E, K, n, side] by columns, and [E, K, side, side] above the diagonal of those on it."""
    wide = -factor.shape[-1] % _SIDE
    count = (factor.shape[-1] + wide) // _SIDE
    by_columns = functional.pad(factor, (0, wide, 0, wide)).unflatten(-1, (count, _SIDE)).transpose(1, 2).contiguous()
    place = torch.arange(count, device=factor.device)
    return by_columns, by_columns.unflatten(2, (count, _SIDE))[:, place, place].triu(1)


def _feed_back(
    scheme: Scheme,
    target: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    rows: _Side,
    columns: _Side,
) -> torch.Tensor:
    """Steps [E, out, in] of target [E, out, in], with scales and zeros as wide, first row and column first."""
    experts, out, width = target.shape
    down, across = rows.near.shape[1], columns.near.shape[1]
    shape = down * _SIDE, across * _SIDE

    def in_blocks(x: torch.Tensor, value: float) -> torch.Tensor:
        """[E, I, J, side, side]"""
        x = functional.pad(x, (0, shape[1] - width, 0, shape[0] - out), value=value)
        return x.view(experts, down, _SIDE, across, _SIDE).transpose(2, 3).contiguous()

    wanted, scale = in_blocks(target, 0.0), in_blocks(scales, 1.0)
    zero = None if zeros is None else in_blocks(zeros, 0.0)
    change = target.new_zeros(experts, down, _SIDE, shape[1])
    moved = target.new_zeros(experts, across, shape[0], _SIDE)  # change R, last block of columns first
    for diagonal in range(down + across - 1):
        low, high = max(0, diagonal - across + 1), min(down, diagonal + 1)
        first = across - 1 - diagonal + low
        mine, back = slice(low, high), slice(first, first + high - low)
        known, above = (diagonal - low) * _SIDE, (high - 1) * _SIDE
        place = torch.arange(low, high, device=target.device)
        at = (slice(None), place, diagonal - place)
        sums = (
            change[:, mine, :, :known] @ columns.far[:, back, :known],
            rows.far[:, mine, :, :above] @ moved[:, back, :above],
        )
        near = rows.near[:, mine], columns.near[:, back]
        done = _fix_blocks(scheme, wanted[at], scale[at], None if zero is None else zero[at], sums, near)
        wanted[at] = done[0]
        for number in range(high - low):
            i, j = low + number, diagonal - low - number
            change[:, i, :, j * _SIDE : (j + 1) * _SIDE] = done[1][:, number]
            moved[:, across - 1 - j, i * _SIDE : (i + 1) * _SIDE] = done[2][:, number]
    return wanted.transpose(2, 3).reshape(experts, *shape)[:, :out, :width]


def _fix_blocks(
    scheme: Scheme,
    wanted: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    sums: tuple[torch.Tensor, torch.Tensor],
    near: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rounds blocks [E, K, side, side], one anti-diagonal of weights after the other.

    Args:
        sums: what the blocks on the left, and those above, add to every entry of S' dW R
        near: see `_Side`, of rows and of columns

    Returns:
        steps, changes, and changes with those of earlier columns fed back
    """
    rows, columns = near
    steps, change, moved = torch.empty_like(wanted), torch.zeros_like(wanted), torch.zeros_like(wanted)
    # Of moved, rows are columns, from the last one on: so an anti-diagonal of it is one of rows of `columns`, too.
    flat = [x.flatten(2) for x in (wanted, scale.reciprocal(), scale, *sums, steps, change)]
    target, per_scale, scale, left, above, all_steps, all_change = flat
    zero, all_moved = None if zero is None else zero.flatten(2), moved.flatten(2)
    for wave in range(2 * _SIDE - 1):
        top, end = max(0, wave - _SIDE + 1), min(_SIDE, wave + 1)
        behind = slice(_SIDE - 1 - wave + top, _SIDE - 1 - wave + end)
        at = slice(wave + top * (_SIDE - 1), wave + (end - 1) * (_SIDE - 1) + 1, _SIDE - 1)
        turned = slice(behind.start * _SIDE + top, (behind.stop - 1) * _SIDE + end, _SIDE + 1)
        from_left, from_above = left[..., at], above[..., at]
        if wave:
            known = wave - top  # columns, and rows before the last of these
            from_left = from_left + (change[:, :, top:end, :known] * columns[:, :, behind, :known]).sum(-1)
            from_above = from_above + (rows[:, :, top:end, : end - 1] * moved[:, :, behind, : end - 1]).sum(-1)
        now = target[..., at]
        ratio = (now - from_left).sub_(from_above).mul_(per_scale[..., at])
        step = scheme.round_(ratio, None if zero is None else zero[..., at])
        lost = torch.addcmul(now, step, scale[..., at], value=-1).neg_()
        all_steps[..., at], all_change[..., at], all_moved[..., turned] = step, lost, lost + from_left
    return steps, change, moved.flip(2).mT
