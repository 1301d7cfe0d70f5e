"""GPTQ (Frantar et al. 2022), batched over experts: one factorisation and one column loop for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmc.convert.quantised_weight import QuantisedWeight
from llmc.quant.schemes.scheme import Scheme

BLOCK = 128  # columns whose updates to the rest are applied together
DAMPING = 0.01  # of the mean diagonal, at first
_MAX_DAMPING = 10.0
ASYMMETRY = 0.5  # how far asymmetric calibration goes from the weight to the best one, which overfits


@dataclass(frozen=True)
class Quantised:
    """The result of `solve`, with the leading experts dimension E of its input.

    codes:   [E, out, in], scales: [E, out / rows, in / columns] as the scheme stores them
    zeros:   always None: all schemes are symmetric
    order:   [E, in] int64, the order in which columns were fixed
    error:   [E], relative output error tr(dW H dW') / tr(W H W')
    damping: [E], the share of the mean diagonal that made H factorise; infinity: never, rounded to nearest
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: None
    order: torch.Tensor
    error: torch.Tensor
    damping: torch.Tensor
    scheme: Scheme

    def weight(self, expert: int = 0) -> QuantisedWeight:
        shape = (self.codes.shape[-2], self.codes.shape[-1])
        block = self.scheme.block(shape)
        return QuantisedWeight(self.codes[expert], self.scales[expert], block, self.scheme.code_type)


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantisedWeight:
    """[out, in] float32, each weight to its nearest code."""
    shape = (weight.shape[0], weight.shape[1])
    scales = scheme.scales(weight)
    codes = scheme.to_codes(scheme.round(weight / scheme.expand(scales, shape)))
    return QuantisedWeight(codes, scales, scheme.block(shape), scheme.code_type)


@torch.no_grad()
def solve(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme, cross: torch.Tensor | None = None) -> Quantised:
    """Quantises [E, out, in] weights so that outputs on the calibration inputs change least.

    hessian: [E, in, in], the sum over calibration tokens of x x' (float32; a common factor does not matter).
    cross:   [E, in, in], the sum of (x0 - x) x' with the original model's inputs x0: what is approximated then is
             the original's output W x0, for which W (1 + cross inverse(hessian)) is the best weight; asymmetric
             calibration (GPTAQ, Li et al. 2025; QEP, Arai and Ichikawa 2025)
    Columns are fixed in order of falling diagonal (act-order) while groups and scales are those of the original
    order (static groups), so nothing has to be reordered at run time. Pure; float32; deterministic.
    """
    if weight.dim() == 2:
        weight, hessian = weight[None], hessian[None]
    weight, hessian = weight.float(), hessian.float()
    _, out, columns = weight.shape
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = diagonal <= 0  # channels that were never active: free to be zero
    order = diagonal.argsort(dim=-1, descending=True, stable=True)
    back = order.argsort(dim=-1)

    def columns_by(order: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x.gather(-1, order[:, None, :].expand_as(x))

    def in_order(x: torch.Tensor) -> torch.Tensor:
        """[E, n, in] → [E, in, n], columns in act-order and contiguous."""
        return columns_by(order, x).mT.contiguous()

    inverse, damping = _inverse_factor(in_order(in_order(hessian)), dead.gather(-1, order))
    wanted = weight.masked_fill(dead[:, None, :], 0.0)
    if cross is not None:
        shift = inverse.mT @ (inverse @ in_order(wanted @ cross))
        wanted = wanted + ASYMMETRY * columns_by(back, shift.mT)
    scales = scheme.scales(wanted, diagonal)
    wide_scales = in_order(scheme.expand(scales, (out, columns)))
    target = in_order(wanted)
    rounded = torch.empty_like(target)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block, error = target[:, start:end], torch.empty_like(target[:, start:end])
        factor = inverse[:, start:end, start:end]
        for i in range(end - start):
            scale = wide_scales[:, start + i]
            code = scheme.round(block[:, i] / scale)
            rounded[:, start + i] = code
            error[:, i] = (block[:, i] - code * scale) / factor[:, i, i, None]
            if i + 1 < end - start:
                block[:, i + 1 :].baddbmm_(factor[:, i, i + 1 :, None], error[:, i, None], alpha=-1)
        if end < columns:
            target[:, end:].baddbmm_(inverse[:, start:end, end:].mT, error, alpha=-1)
    codes = columns_by(back, rounded.mT)
    change = codes * scheme.expand(scales, (out, columns)) - weight
    lost, whole = (((x @ hessian) * x).sum((-2, -1)) for x in (change, weight))
    error = torch.where(whole > 0, lost / whole, 0.0)
    return Quantised(scheme.to_codes(codes), scales, None, order, error, damping, scheme)


def _inverse_factor(hessian: torch.Tensor, dead: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper U with `inverse(H + damping) = U' U`, and the damping used, both per expert.

    With J the exchange matrix, J H J = L L' gives H = R R' for the upper triangular R = J L J, and so U = inverse(R):
    one factorisation and one triangular solve. Damping grows tenfold until it succeeds; where it never
    does, U is the identity, which is rounding to nearest, and the damping is infinite.
    """
    experts, size, _ = hessian.shape
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    flipped = hessian.flip(-1, -2)
    dead = dead.flip(-1)
    damping = torch.full((experts,), DAMPING, device=hessian.device)
    factor = torch.eye(size, device=hessian.device).repeat(experts, 1, 1)
    todo = torch.arange(experts, device=hessian.device)
    while len(todo):
        damped = flipped[todo].clone()
        damped.diagonal(dim1=-2, dim2=-1).add_((damping[todo] * mean[todo])[:, None])
        damped.diagonal(dim1=-2, dim2=-1)[dead[todo]] = 1.0
        lower, info = torch.linalg.cholesky_ex(damped)
        good = (info == 0) & lower.isfinite().flatten(1).all(-1)
        factor[todo[good]] = lower[good]
        todo = todo[~good]
        damping[todo] *= 10
        damping[todo[damping[todo] > _MAX_DAMPING]] = torch.inf
        todo = todo[damping[todo].isfinite()]
    upper = factor.flip(-1, -2)
    identity = torch.eye(size, device=hessian.device).expand(experts, -1, -1)
    return torch.linalg.solve_triangular(upper, identity, upper=True), damping
