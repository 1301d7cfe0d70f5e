"""Signed integers of 2, 3, 4, 5, 6 or 8 bits, one scale per group of input channels."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import cast

import torch

from llmc.convert.formats.gptq import BITS as ACT_ORDER_BITS
from llmc.convert.quantized_weight import CodeType
from llmc.errors import InputError
from llmc.quant.schemes.base import QuantParams, Scheme

GROUP_SIZES = (32, 64, 128, 256)
# Shrinking the range clips a few large weights and rounds all others more finely; the best share of it is searched,
# first from 1 down in wide steps, then around the best of those.
_COARSE = tuple(1.0 - 0.05 * step for step in range(10))
_FINE = (0.025, -0.025, 0.0125, -0.0125)
# Of 8 bits, one code of 256 is not worth what programs may make of a negative scale.
_MOST_BITS_TURNED_OVER = 4
# Weights whose scales are searched at once: as many as a processor's cache holds, or as keep a GPU busy.
_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 26


class Integer(Scheme):
    """group_size None: one scale per output channel. Asymmetric grids have a zero of their own per group.

    A symmetric grid has a code more below zero than above it; a negative scale turns it over.
    """

    def __init__(self, bits: int, group_size: int | None, symmetric: bool = True, dynamic_groups: bool = False) -> None:
        self.bits, self.group_size, self.symmetric, self.dynamic_groups = bits, group_size, symmetric, dynamic_groups
        self.signs: tuple[float, ...] = (1.0, -1.0) if symmetric and bits <= _MOST_BITS_TURNED_OVER else (1.0,)
        self.lowest, self.highest = -(1 << bits - 1), (1 << bits - 1) - 1
        self.code_type, self.sharing = cast(CodeType, f"int{bits}"), (1, group_size or 0)
        size = f"g{group_size}" if group_size else "channel"
        self.name = f"int{bits}-{size}{'' if symmetric else '-asym'}{'-actorder' if dynamic_groups else ''}"

    @cached_property
    def positive(self) -> Scheme:
        if len(self.signs) == 1:
            return self
        found = copy(self)
        found.signs = (1.0,)
        return found

    def check(self, weight_name: str, shape: tuple[int, int]) -> None:
        columns = shape[1]
        if columns % (self.group_size or 32):
            fits = [f"int{self.bits}-g{size}" for size in GROUP_SIZES if columns % size == 0]
            advice = f"use {' or '.join(fits)}" if fits else "use fp8-channel"
            raise InputError(f"{weight_name} has {columns} inputs, no multiple of {self.group_size or 32}; {advice}")

    def grid(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> QuantParams:
        """Of least weighted squared error per group; scales are bfloat16, and of up to 4 bits of either sign."""
        groups = weight.unflatten(-1, (-1, self.group_size or weight.shape[-1]))  # [..., out, G, g]
        *batch, out, count, size = groups.shape
        scales = torch.empty(*batch, out, count, dtype=torch.bfloat16, device=weight.device)
        zeros = None if self.symmetric else torch.empty(*batch, out, count, dtype=torch.int8, device=weight.device)
        matter = torch.ones_like(groups[..., :1, :, :])
        if importance is not None:
            matter = importance.sqrt().unflatten(-1, (-1, size))[..., None, :, :]
        if weight.is_meta:
            return QuantParams(scales, zeros)
        flat = groups.reshape(-1, out, count, size)
        matter = matter.expand(*batch, 1, count, size).reshape(-1, 1, count, size)
        rows = max(1, (_GPU_CHUNK if weight.is_cuda else _CHUNK) // (count * size))
        for expert in range(len(flat)):
            for start in range(0, out, rows):
                part = slice(start, start + rows)
                found = self._search(flat[expert, part], matter[expert])
                scales.view(-1, out, count)[expert, part] = found.scales
                if zeros is not None and found.zero_points is not None:
                    zeros.view(-1, out, count)[expert, part] = found.zero_points
        return QuantParams(scales, zeros)

    def _search(self, groups: torch.Tensor, matter: torch.Tensor) -> QuantParams:
        """Groups [rows, G, g], matter [1, G, g]: square roots of importances."""
        if self.symmetric:
            low, reach, steps = None, groups.abs().amax(-1), float(self.highest)
        else:
            low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
            reach, steps = high - low, float(self.highest - self.lowest)
        best_error = torch.full_like(reach, torch.inf)
        best = torch.ones_like(reach, dtype=torch.bfloat16)
        best_share, best_zero = torch.ones_like(reach), torch.zeros_like(reach)
        work = torch.empty_like(groups)

        def look(share: torch.Tensor) -> None:
            nonlocal best_error, best, best_share, best_zero
            scale = (reach * share / steps).bfloat16()
            exact = torch.where(scale == 0, 1.0, scale.float())
            if low is None:
                zero = best_zero
            else:
                zero = (self.lowest - low * share / exact).round().clamp(self.lowest, self.highest)
            torch.mul(groups, exact.reciprocal()[..., None], out=work)
            self.round_(work, None if low is None else zero[..., None])
            torch.addcmul(groups, work, exact[..., None], value=-1, out=work).mul_(matter)
            error = torch.linalg.vector_norm(work, dim=-1)
            better = (error < best_error) & (scale != 0)
            best_error, best = torch.where(better, error, best_error), torch.where(better, scale, best)
            best_share, best_zero = torch.where(better, share, best_share), torch.where(better, zero, best_zero)

        for sign in self.signs:
            for share in _COARSE:
                look(torch.full_like(reach, sign * share))
        center = best_share
        for offset in _FINE:
            look(center.sign() * (center.abs() + offset).clamp(max=1.0))
        return QuantParams(best, None if self.symmetric else best_zero.to(torch.int8))

    def round_(self, ratio: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        if zeros is None:
            return ratio.round_().clamp_(self.lowest, self.highest)
        return ratio.round_().clamp_(self.lowest - zeros, self.highest - zeros)

    def to_codes(self, steps: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        return (steps if zeros is None else steps + zeros).to(torch.int8)


SCHEMES = tuple(
    Integer(bits, size, symmetric, dynamic_groups)
    for bits in (4, 8, 3, 2, 5, 6)
    for size in (*GROUP_SIZES, None)
    for symmetric in (True, False)
    for dynamic_groups in ((False, True) if size and bits in ACT_ORDER_BITS else (False,))
)
