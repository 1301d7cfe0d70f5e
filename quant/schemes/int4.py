"""Signed 4-bit integers, one scale per group of input channels; compressed-tensors `pack-quantized`."""

from __future__ import annotations

from typing import Any

import torch

from llmc.convert.formats.pack_quantized import pack_int4
from llmc.convert.quantised_weight import QuantisedWeight
from llmc.errors import InputError
from llmc.quant.schemes.scheme import Scheme

GROUP_SIZES = (32, 64, 128)
# Shrinking the range clips a few large weights and rounds all others more finely; the best ratio is searched.
_CLIP_RATIOS = tuple(1.0 - 0.0125 * step for step in range(37))


class Int4(Scheme):
    code_type = "int4"

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.name = f"int4-g{group_size}"

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        return (1, self.group_size)

    def check(self, weight_name: str, shape: tuple[int, int]) -> None:
        columns = shape[1]
        if columns % self.group_size:
            fits = [f"int4-g{size}" for size in GROUP_SIZES if columns % size == 0]
            advice = f"use {' or '.join(fits)}" if fits else "use fp8-channel"
            raise InputError(f"{weight_name} has {columns} inputs, no multiple of {self.group_size}; {advice}")

    def scales(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
        """bfloat16 […, out, in / group_size]: the clip ratio of least weighted squared error per group."""
        groups = weight.unflatten(-1, (-1, self.group_size))  # [..., out, G, g]
        largest = groups.abs().amax(-1)
        matter = None
        if importance is not None:
            matter = importance.unflatten(-1, (-1, self.group_size))[..., None, :, :]
        best_error = torch.full_like(largest, torch.inf)
        best = torch.ones_like(largest, dtype=torch.bfloat16)
        for ratio in _CLIP_RATIOS:
            scale = (largest * (ratio / 7)).bfloat16()
            wide = torch.where(scale == 0, 1.0, scale.float())[..., None]
            error = self.round(groups / wide).mul_(wide).sub_(groups).square_()
            total = error.sum(-1) if matter is None else error.mul_(matter).sum(-1)
            better = (total < best_error) & (scale != 0)
            best_error = torch.where(better, total, best_error)
            best = torch.where(better, scale, best)
        return best

    def round(self, ratio: torch.Tensor) -> torch.Tensor:
        return ratio.round().clamp_(-8, 7)

    def to_codes(self, rounded: torch.Tensor) -> torch.Tensor:
        return rounded.to(torch.int8)

    def config_group(self) -> dict[str, Any]:
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": self.group_size,
            "dynamic": False,
        }
        return {"format": "pack-quantized", "weights": weights}

    def stored(self, module: str, weight: QuantisedWeight) -> dict[str, torch.Tensor]:
        return {
            f"{module}.weight_packed": pack_int4(weight.codes),
            f"{module}.weight_scale": weight.scales,
            f"{module}.weight_shape": torch.tensor(weight.shape),
        }


SCHEMES = tuple(Int4(size) for size in GROUP_SIZES)
