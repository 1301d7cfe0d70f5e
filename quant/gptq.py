"""GPTQ (Frantar et al. 2022), batched over experts: one factorization and one column loop for all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch

from llmc.convert.quantized_weight import QuantizedWeight, bits_of, is_integer
from llmc.quant.schemes.base import QuantParams, Scheme

_LOG = logging.getLogger(__name__)
Wide = tuple[torch.Tensor, torch.Tensor | None]  # [E, columns, out], scales and zeros

BLOCK = 128  # columns whose updates to the rest are applied together
_STRIP = 16  # columns of a block whose updates to the rest of it are
DAMPING = 0.01  # of the mean diagonal, at first
_MAX_DAMPING = 10.0
USE_KERNEL = True  # on a GPU
_BATCHED = 1024  # the widest matrices that are factorized in one call: cuSOLVER's for many is made for small ones
_SOLVED = 512  # and those whose inverse is a solve against the identity
NOISE = 1e-3, 1e-9  # of the error, and of the whole output: what sums in float32 may be off by
ASYMMETRY = 0.75  # how far asymmetric calibration goes from the weight to the best one, which overfits


@dataclass(frozen=True)
class Quantized:
    """The result of `solve`, with the leading experts dimension E of its input.

    Attributes:
        qweight: [E, out, in]; scales and zero_points: [E, out / rows, in / columns] as the scheme stores them
        g_idx: [E, in] int32, the group of each input channel after dynamic act-order; None: j // columns
        order: [E, in] int64, the order in which columns were fixed
        error: [E, P], relative output error tr(dW H dW') / tr(W H W') of the layers that lie below each other in a
            matrix; with a cross covariance dW is the distance from the weight that it asks for
        nearest_error: [E, P], the same if all weights are rounded to nearest, by the same scales
        rounded: [E, P], whether a layer was rounded to nearest, since the solver would have lost more
        damping: [E], the share of the mean diagonal that made H factorize; infinity: never, rounded to nearest
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    g_idx: torch.Tensor | None
    order: torch.Tensor
    error: torch.Tensor
    nearest_error: torch.Tensor
    rounded: torch.Tensor
    damping: torch.Tensor
    scheme: Scheme

    def weight(self, expert: int = 0, rows: slice = slice(None)) -> QuantizedWeight:
        """Of one expert; `rows` only where no scale is shared by several."""
        codes, scales = self.qweight[expert, rows].clone(), self.scales[expert, rows].clone()
        zeros = None if self.zero_points is None else self.zero_points[expert, rows].clone()
        groups = None if self.g_idx is None else self.g_idx[expert].clone()
        scheme, block = self.scheme, self.scheme.block((codes.shape[0], codes.shape[1]))
        levels = scheme.two_level(self.scales[expert])
        levels = levels and replace(levels, codes=levels.codes[rows].clone())
        return QuantizedWeight(codes, scales, block, scheme.code_type, zeros, groups, scheme.activations, levels)


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    """[out, in] float32, each weight to its nearest code."""
    shape = (weight.shape[0], weight.shape[1])
    scales, zeros = scheme.grid(weight)
    wide_zeros = None if zeros is None else scheme.expand(zeros, shape)
    codes = scheme.to_codes(scheme.round_(weight / scheme.expand(scales, shape), wide_zeros), wide_zeros)
    groups = None
    if scheme.dynamic_groups:
        groups = (torch.arange(shape[1], device=weight.device) // scheme.block(shape)[1]).int()
    return QuantizedWeight(
        *(codes, scales, scheme.block(shape), scheme.code_type, zeros, groups, scheme.activations),
        two_level=scheme.two_level(scales),
    )


@torch.no_grad()
def solve(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scheme: Scheme,
    cross_covariance: torch.Tensor | None = None,
    rows: Sequence[int] = (),
) -> Quantized:
    """Quantizes [E, out, in] weights so that outputs on the calibration inputs change least.

    A layer that would lose less if it were rounded to nearest, is: feeding errors back is greedy, and what is moved on
    to the last columns may leave their range.

    Args:
        hessian: [E, in, in], the sum over calibration tokens of x x' (float32; a common factor does not matter), or [1,
            in, in] for all experts
        cross_covariance: like it, C, the sum of (x0 - x) x' with the original model's inputs x0: what is approximated
            then is the original's output W x0, for which W (1 + C inverse(hessian)) is the best weight; asymmetric
            calibration (GPTAQ, Li et al. 2025; QEP, Arai and Ichikawa 2025)
        rows: how many rows each of the P layers has that lie below each other in a matrix; (): it is one layer

    Columns are fixed in order of falling diagonal (act-order). Groups and scales are those of the original order, so
    nothing has to be reordered at run time, unless the scheme's groups are dynamic: then they are of neighbors in the
    new order, and their scales are found when the first is reached.
    Pure; float32; deterministic.
    """
    if weight.dim() == 2:
        weight, hessian = weight[None], hessian[None]
    weight, hessian = weight.float(), hessian.float()
    experts, out, columns = weight.shape
    _, group = scheme.block((out, columns))
    diagonal = hessian.diagonal(dim1=-2, dim2=-1).expand(experts, -1)
    dead = diagonal <= 0  # channels that were never active: free to be zero
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    back = order.argsort(dim=-1)

    def in_order(x: torch.Tensor) -> torch.Tensor:
        """[E, n, in] → [E, in, n], columns in act-order and contiguous."""
        return columns_by(order[: len(x)], x).mT.contiguous()

    hinv_cholesky, damping = _hinv_cholesky(in_order(in_order(hessian)), dead.gather(-1, order)[: len(hessian)])
    hinv_cholesky, damping = hinv_cholesky.expand(experts, -1, -1), damping.expand(experts)
    wanted = weight.masked_fill(dead[:, None, :], 0.0)
    if cross_covariance is not None:
        shift = hinv_cholesky.mT @ (hinv_cholesky @ in_order(wanted @ cross_covariance))
        shift.masked_fill_(damping.isinf()[:, None, None], 0.0)
        wanted = wanted + ASYMMETRY * columns_by(back, shift.mT)
    target, grids = in_order(wanted), list[QuantParams]()

    def whole_grid(_: slice) -> Wide:
        grids.append(scheme.grid(wanted, diagonal))
        scales, zeros = grids[-1]
        return in_order(scheme.expand(scales, (out, columns))), (
            None if zeros is None else in_order(scheme.expand(zeros, (out, columns)))
        )

    def group_grid(members: slice) -> Wide:
        importance = diagonal.gather(-1, order)[:, members]
        grids.append(scheme.grid(target[:, members].mT.contiguous(), importance))
        scales, zeros = grids[-1]
        return scales.float().mT, None if zeros is None else zeros.float().mT

    if scheme.dynamic_groups:
        fixed = _fix_columns(scheme, target, hinv_cholesky, group, group_grid)
    else:
        fixed = _fix_columns(scheme, target, hinv_cholesky, columns, whole_grid)
    parts = [grid.zero_points for grid in grids if grid.zero_points is not None]
    grid = QuantParams(torch.cat([grid.scales for grid in grids], -1), torch.cat(parts, -1) if parts else None)
    steps, scales = columns_by(back, fixed.steps.mT), columns_by(back, fixed.scales.mT)
    zeros = None if fixed.zero_points is None else columns_by(back, fixed.zero_points.mT)
    change = scales * steps - wanted
    # The loop counts the error of the damped Hessian.
    lost = fixed.lost - (damping * diagonal.mean(-1))[:, None] * change.square().sum(-1)
    for expert in damping.isinf().nonzero().flatten().tolist():  # nothing to count by
        lost[expert] = ((change[expert] @ hessian[expert % len(hessian)]) * change[expert]).sum(-1)
    del fixed, change
    nearest = scheme.round_(weight.masked_fill(dead[:, None, :], 0.0).div_(scales), zeros)
    away = (scales * nearest).sub_(wanted)
    errors = lost.clamp_min(0), ((away @ hessian) * away).sum(-1), ((weight @ hessian) * weight).sum(-1)
    heights = list(rows or (out,))
    mine, plain, whole = (torch.stack([x.sum(-1) for x in each.split(heights, -1)], -1) for each in errors)
    rounded = (mine > (1 + NOISE[0]) * plain + NOISE[1] * whole) & damping.isfinite()[:, None]
    if rounded.any():
        steps = torch.where(of_rows(rounded, heights)[..., None], nearest, steps)
    error, plain = (torch.where(whole > 0, each / whole, 0.0) for each in (mine.where(~rounded, plain), plain))
    groups = (back // group).int() if scheme.dynamic_groups else None
    return Quantized(scheme.to_codes(steps, zeros), *grid, groups, order, error, plain, rounded, damping, scheme)


def of_rows(layers: torch.Tensor, heights: list[int]) -> torch.Tensor:
    """What is known of layers [E, P] for each of the rows that they have [E, out]."""
    return layers.repeat_interleave(torch.tensor(heights, device=layers.device), -1)


def columns_by(order: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """X [E, n, in] with the columns of each expert in `order` [E, in]."""
    return x.gather(-1, order[:, None, :].expand_as(x))


class _Fixed(NamedTuple):
    """[E, in, out] steps, scales and zeros; [E, out] the error, damping included."""

    steps: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    lost: torch.Tensor


def _fix_columns(
    scheme: Scheme, target: torch.Tensor, hinv_cholesky: torch.Tensor, span: int, find_grid: Callable[[slice], Wide]
) -> _Fixed:
    """Rounds the columns of target [E, in, out] one by one and moves what each loses on to those after it.

    In strips inside blocks: a column touches its strip, a strip its block, a block all the rest. find_grid is asked for
    every `span` columns when the first of them is reached; hinv_cholesky [E, in, in] is the upper factor.
    """
    columns = target.shape[1]
    steps, scales = torch.empty_like(target), torch.empty_like(target)
    zeros = None if scheme.symmetric else torch.empty_like(target)
    total = torch.zeros_like(target[:, 0])
    fix_strip: Callable[..., None] = partial(_fix_strip, scheme)
    strip = _STRIP
    if kernel := _kernel(scheme, target):
        # Groups that find their scales on the way need what earlier strips have moved on to them.
        fix_strip, strip = kernel, BLOCK if span >= columns else math.gcd(span, BLOCK)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        lost = torch.empty_like(target[:, start:end])
        for left in range(start, end, strip):
            right = min(left + strip, end)
            if left % span == 0:
                members = slice(left, left + span)
                scales[:, members], wide = find_grid(members)
                if zeros is not None and wide is not None:
                    zeros[:, members] = wide
            part, now = slice(left, right), lost[:, left - start : right - start]
            zero = None if zeros is None else zeros[:, part]
            fix_strip(target[:, part], hinv_cholesky[:, part, part], scales[:, part], zero, steps[:, part], now)
            if right < end:
                target[:, right:end].baddbmm_(hinv_cholesky[:, part, right:end].mT, now, alpha=-1)
        total += lost.square().sum(-2)
        if end < columns:
            target[:, end:].baddbmm_(hinv_cholesky[:, start:end, end:].mT, lost, alpha=-1)
    return _Fixed(steps, scales, zeros, total)


def _fix_strip(
    scheme: Scheme,
    target: torch.Tensor,
    hinv_cholesky: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    steps: torch.Tensor,
    lost: torch.Tensor,
) -> None:
    """Rounds the columns of target [E, n, out] one by one and moves what each loses on to those after it; hinv_cholesky
    [E, n, n]. Writes steps and lost, shaped like target.
    """
    per_scale, diagonal = scales.reciprocal(), hinv_cholesky.diagonal(dim1=-2, dim2=-1)[..., None].reciprocal()
    for i in range(target.shape[1]):
        step, now = steps[:, i], lost[:, i]
        torch.mul(target[:, i], per_scale[:, i], out=step)
        scheme.round_(step, None if zeros is None else zeros[:, i])
        torch.addcmul(target[:, i], step, scales[:, i], value=-1, out=now).mul_(diagonal[:, i])
        if i + 1 < target.shape[1]:
            target[:, i + 1 :].baddbmm_(hinv_cholesky[:, i, i + 1 :, None], now[:, None], alpha=-1)


@cache
def _launches(device: torch.device) -> bool:
    """Whether Triton can run the kernel there: when one is first run, it builds a launcher with a C compiler, which not
    every machine has. That is tried here, before anything depends on it.
    """
    from llmc.quant.kernels.fix_columns import fix_block

    inverse = torch.eye(BLOCK, device=device)[None]
    target, steps, lost = (torch.ones((1, BLOCK, BLOCK), device=device) for _ in range(3))
    try:
        fix_block(target, inverse, torch.ones_like(target), None, steps, lost, lowest=-8, highest=7)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        _LOG.warning("GPTQ goes on without its Triton kernel, in plain PyTorch, which is slower: %s", why)
        return False
    return True


def _kernel(scheme: Scheme, target: torch.Tensor) -> Callable[..., None] | None:
    """What does the same as `_fix_strip` for a whole block in one kernel, on a GPU where Triton is installed."""
    if not (USE_KERNEL and target.is_cuda):
        return None
    try:
        from llmc.quant.kernels.fix_columns import fix_block
    except ImportError:  # PyTorch brings it to Linux only
        return None
    if not _launches(target.device):
        return None
    bits = 0 if is_integer(scheme.code_type) else bits_of(scheme.code_type)
    return partial(fix_block, lowest=scheme.lowest, highest=scheme.highest, float_bits=bits)


def _hinv_cholesky(hessian: torch.Tensor, dead: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper U with `inverse(H + damping) = U' U`, and the damping used, both per expert.

    It is the inverse of the upper factor. Where H never factorizes, U is the identity, which is rounding to nearest,
    and the damping is infinite.
    """
    upper, damping = upper_factor(hessian, dead)
    return _triangular_inverse(upper, torch.zeros_like(upper)), damping


def upper_factor(
    hessian: torch.Tensor, dead: torch.Tensor, first: float = DAMPING
) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper triangular R with `H + damping = R R'` for [E, n, n], and the damping used, both per expert.

    With J the exchange matrix, J H J = L L' gives R = J L J. Damping is `first` of the mean diagonal, and grows tenfold
    until it succeeds; where it never does, R is the identity and the damping infinite. `dead` [E, n] channels get a
    diagonal of 1.
    """
    experts, size, _ = hessian.shape
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    flipped = hessian.flip(-1, -2)
    dead = dead.flip(-1)
    damping = torch.full((experts,), first, device=hessian.device)
    factor = torch.eye(size, device=hessian.device).repeat(experts, 1, 1)
    todo = torch.arange(experts, device=hessian.device)
    while len(todo):
        good = torch.zeros_like(todo, dtype=torch.bool)
        for part in torch.arange(len(todo), device=todo.device).split(len(todo) if size <= _BATCHED else 1):
            some = todo[part]
            damped = flipped[some]  # a copy
            damped.diagonal(dim1=-2, dim2=-1).add_((damping[some] * mean[some])[:, None])
            damped.diagonal(dim1=-2, dim2=-1)[dead[some]] = 1.0
            lower, info = torch.linalg.cholesky_ex(damped)
            good[part] = (info == 0) & lower.isfinite().flatten(1).all(-1)
            factor[some[good[part]]] = lower[good[part]]
        todo = todo[~good]
        damping[todo] *= 10
        damping[todo[damping[todo] > _MAX_DAMPING]] = torch.inf
        todo = todo[damping[todo].isfinite()]
    del flipped
    return factor.flip(-1, -2), damping


def _triangular_inverse(upper: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Fills `inverse` [E, n, n], which is zero, with that of upper triangular matrices, and returns it.

    By halves: between the inverses of the blocks A and C on the diagonal lies -inverse(A) B inverse(C). A solve against
    the identity does not see that half of it is zero, and took twice as long for 2,048 and 4,096 columns.
    """
    size = upper.shape[-1]
    if size <= _SOLVED:
        identity = torch.eye(size, device=upper.device).expand_as(upper)
        return inverse.copy_(torch.linalg.solve_triangular(upper, identity, upper=True))
    half = size // 2
    head, tail = slice(0, half), slice(half, size)
    first = _triangular_inverse(upper[:, head, head], inverse[:, head, head])
    last = _triangular_inverse(upper[:, tail, tail], inverse[:, tail, tail])
    inverse[:, head, tail] = (first @ upper[:, head, tail] @ last).neg_()
    return inverse
