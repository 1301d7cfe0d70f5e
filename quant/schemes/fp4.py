"""4-bit floats (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) in groups of inputs.

NVFP4 has groups of 16 with scales in E4M3, and a float32 for the whole matrix; MXFP4 has groups of 32 with powers of
two. The values are not evenly spaced, so that a scale decides more than the range: with the largest weight of a group
at 6 none has a value between 4 and 6, with the largest at 4 all steps are of 1 or less. So scales are searched, of
least weighted squared error; "four over six" (Cook et al. 2025) are two of the candidates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch

from llmc.convert.bits import LARGEST_E2M1, round_to_e2m1_
from llmc.convert.quantized_weight import (
    LARGEST_EXPONENT,
    LARGEST_FP8,
    MXFP4_GROUP,
    NVFP4_GROUP,
    Activations,
    TwoLevelScales,
)
from llmc.errors import InputError
from llmc.quant.schemes.base import QuantParams, Scheme

_FOUR = 4.0
# Weights whose scales are searched at once: as many as a processor's cache holds, or as keep a GPU busy.
_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 26
# Steps of E4M3 from the scale that makes the largest weight 6: 8 of them double it, and 4 to 5 make that weight 4.
# Those beyond -2 and 6 are never the best where all inputs matter alike; where some are twenty times as large as
# others, they take 4 % off the error after GPTQ.
_STEPS = range(-4, 10)
_POWERS = range(-1, 2)  # of two, beside the one that OCP's specification takes, which clips what lies above 6
_LARGEST_CODE = 126  # of E4M3, 448; its codes are in the order of their values


class FP4(Scheme):
    """What both have in common."""

    code_type = "float4_e2m1fn"
    lowest, highest = -LARGEST_E2M1, LARGEST_E2M1
    group: int

    def check(self, weight_name: str, shape: tuple[int, int]) -> None:
        if shape[1] % self.group:
            raise InputError(f"{weight_name} has {shape[1]} inputs, no multiple of {self.group}; use fp8-channel")

    def grid(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> QuantParams:
        """Scales are float32, of least weighted squared error per group among those that can be stored."""
        groups = weight.unflatten(-1, (-1, self.group))  # [..., out, G, g]
        scales = torch.empty(groups.shape[:-1], device=weight.device)
        if weight.is_meta:
            return QuantParams(scales)
        flat, found = groups.flatten(0, -4) if groups.dim() > 3 else groups[None], scales.view(-1, *scales.shape[-2:])
        matter = torch.ones_like(flat[:, :1])
        if importance is not None:
            matter = importance.sqrt().reshape(len(flat), 1, -1, self.group)
        rows = max(1, (_GPU_CHUNK if weight.is_cuda else _CHUNK) // weight.shape[-1])
        for matrix in range(len(flat)):
            unit = self._unit(flat[matrix].abs().amax())
            for start in range(0, flat.shape[1], rows):
                part = slice(start, start + rows)
                found[matrix, part] = self._search(flat[matrix, part], matter[matrix], unit)
        return QuantParams(scales)

    def _search(self, groups: torch.Tensor, matter: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """Of groups [rows, G, g] with matter [1, G, g], the square roots of importances."""
        best, best_error, work = None, torch.empty(0), torch.empty_like(groups)
        for scales in self._candidates(groups.abs().amax(-1), unit):
            self.round_(torch.div(groups, scales[..., None], out=work))
            torch.addcmul(groups, work, scales[..., None], value=-1, out=work).mul_(matter)
            error = torch.linalg.vector_norm(work, dim=-1)
            if best is None:
                best, best_error = scales, error
            else:
                better = error < best_error
                best, best_error = torch.where(better, scales, best), torch.where(better, error, best_error)
        assert best is not None
        return best

    @abstractmethod
    def _unit(self, largest: torch.Tensor) -> torch.Tensor:
        """The scale of a matrix, whose largest magnitude it is told."""

    @abstractmethod
    def _candidates(self, largest: torch.Tensor, unit: torch.Tensor) -> Iterator[torch.Tensor]:
        """Scales that come into question for groups with these largest magnitudes [rows, G]."""

    def round_(self, ratio: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        """Ties go to the even code; zeros are positive."""
        return round_to_e2m1_(ratio)

    def to_codes(self, steps: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        return steps.to(torch.float8_e4m3fn)


class NVFP4(FP4):
    """The scale of the matrix is a power of two. Measured on the weights of a model, that costs nothing (squared error
    6.256e-3 of their square, against 6.255e-3 with the scale that uses all of E4M3's range), and it makes every weight
    exact in bfloat16, which is what most programs decode to, whether they multiply by it or divide by its reciprocal.

    Modules that read one input have it in common, since programs join them (q, k and v; gate and up) and then have
    place for one.
    """

    group, sharing, scaled_as_a_whole = NVFP4_GROUP, (1, NVFP4_GROUP), True

    def __init__(self, static_inputs: bool = False) -> None:
        self.name = "nvfp4-static" if static_inputs else "nvfp4"
        self.activations = Activations("nvfp4") if static_inputs else None

    def _unit(self, largest: torch.Tensor) -> torch.Tensor:
        exponent = torch.frexp(largest / (_FOUR * LARGEST_FP8)).exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        return torch.ldexp(torch.ones_like(largest), exponent)

    def _candidates(self, largest: torch.Tensor, unit: torch.Tensor) -> Iterator[torch.Tensor]:
        six = (largest / (LARGEST_E2M1 * unit)).clamp(max=LARGEST_FP8).to(torch.float8_e4m3fn).view(torch.uint8).short()
        for step in _STEPS:
            codes = (six + step).clamp(1, _LARGEST_CODE).to(torch.uint8)
            yield codes.view(torch.float8_e4m3fn).float() * unit

    def two_level(self, scales: torch.Tensor) -> TwoLevelScales:
        """Of any matrix that `grid` made: twice a value of E4M3 is one, so that the largest may become up to 448."""
        if scales.is_meta:
            codes, divisor = torch.empty_like(scales, dtype=torch.float8_e4m3fn), torch.empty(1, device="meta")
            return TwoLevelScales(codes, divisor)
        room = torch.frexp(LARGEST_FP8 / scales.amax()).exponent - 1
        divisor = torch.ldexp(torch.ones(1, device=scales.device), room)
        return TwoLevelScales((scales * divisor).to(torch.float8_e4m3fn), divisor)


class MXFP4(FP4):
    group, sharing = MXFP4_GROUP, (1, MXFP4_GROUP)

    def __init__(self, dynamic_inputs: bool = False) -> None:
        self.name = "mxfp4-dynamic" if dynamic_inputs else "mxfp4"
        self.activations = Activations("mxfp4") if dynamic_inputs else None

    def _unit(self, largest: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(largest)

    def _candidates(self, largest: torch.Tensor, unit: torch.Tensor) -> Iterator[torch.Tensor]:
        """As OCP's Microscaling Formats Specification 1.0, section 6.3, has it, half of that and twice."""
        power = torch.frexp(largest).exponent - 3  # frexp's mantissa is below 1; 6 is 1.5 times 2^2
        for step in _POWERS:
            yield torch.ldexp(torch.ones_like(largest), (power + step).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT))


SCHEMES = (NVFP4(), NVFP4(static_inputs=True), MXFP4(), MXFP4(dynamic_inputs=True))
