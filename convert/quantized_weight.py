"""One quantized matrix, whatever its format: integer or float codes, and one scale per rectangular block; and how
the numbers that it is multiplied with are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from llmc.convert.bits import LARGEST_E2M1, round_to_e2m1_

CodeType = Literal["int2", "int3", "int4", "int5", "int6", "int8", "float8_e4m3fn", "float4_e2m1fn"]


LARGEST_FP8 = 448.0  # of E4M3
FP8_GROUP = 128  # channels of a row that share a scale, in DeepSeek's scheme
NVFP4_GROUP, MXFP4_GROUP = 16, 32
LARGEST_EXPONENT = 100  # of a scale: what it multiplies stays normal in float32


def round_to_fp8(x: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """What is left of x when it is divided by `scale`, rounded to E4M3 and multiplied by it again.

    The gradient passes as if nothing were rounded (straight-through, Bengio et al. 2013).
    """
    if x.requires_grad:
        rounded: torch.Tensor = _StraightThrough.apply(x, lambda plain: round_to_fp8(plain, scale))
        return rounded
    codes = (x / scale).clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)
    return codes.to(x.dtype) * scale


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rounded: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return rounded(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


Rounding = Literal["tensor", "token", "group", "nvfp4", "mxfp4"]


@dataclass(frozen=True)
class Activations:
    """How a layer's inputs are rounded in front of the product.

    Attributes:
        per: what shares a scale of E4M3: "tensor" all inputs, "token" one row, "group" 128 channels of a row; or one of
            E2M1: "nvfp4" 16 channels of a row, in E4M3 times `scale`, "mxfp4" 32 channels of a row, a power of two
        scale: found in calibration, for "tensor" and "nvfp4"; None: such that the largest magnitude becomes the largest
            code (dynamic)
    """

    per: Rounding
    scale: float | None = None

    @property
    def measured(self) -> bool:
        """Whether it takes a scale that calibration finds."""
        return self.per in ("tensor", "nvfp4")

    def at(self, peak: float) -> Activations:
        """The same with the scale for inputs of this largest magnitude, 0 if there were none, where it takes one.

        That of NVFP4 is the power of two at which no scale of 16 channels exceeds E4M3's range. E4M3 has 15 octaves of
        normal numbers, so that a smaller scale would gain nothing; and programs may divide by it or multiply by its
        reciprocal.
        """
        if not self.measured:
            return self
        if self.per == "tensor":
            return replace(self, scale=input_scale(peak))
        mantissa, exponent = math.frexp(peak / (LARGEST_E2M1 * LARGEST_FP8))
        exponent = min(max(exponent - (mantissa == 0.5), -LARGEST_EXPONENT), LARGEST_EXPONENT)
        return replace(self, scale=math.ldexp(1.0, exponent) if peak else 1.0)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., in]; the gradient passes as if nothing were rounded."""
        if x.requires_grad:
            passed: torch.Tensor = _StraightThrough.apply(x, self.rounded)
            return passed
        if self.per == "tensor" and self.scale is not None:
            return round_to_fp8(x, self.scale)
        if self.per == "mxfp4":
            return _round_to_mxfp4(x)
        if self.per == "nvfp4":
            assert self.scale is not None
            return _round_to_nvfp4(x, self.scale)
        parts = x.unflatten(-1, (-1, FP8_GROUP if self.per == "group" else x.shape[-1]))
        largest = parts.abs().amax(-1, keepdim=True)
        return round_to_fp8(parts, torch.where(largest == 0, 1.0, largest / LARGEST_FP8)).flatten(-2)


def input_scale(peak: float) -> float:
    """The float32 by which the largest magnitude seen becomes the largest code of E4M3."""
    return torch.tensor(peak / LARGEST_FP8 if peak else 1.0).item()


def _round_to_nvfp4(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Of x [..., in] in groups of 16. Where the scale of a group is too small for E4M3 all of it becomes 0.

    Source: NVIDIA, "Introducing NVFP4", 2025; `compute_dynamic_scales_and_zp` of compressed-tensors 0.20.
    """
    groups = x.float().unflatten(-1, (-1, NVFP4_GROUP))
    scales = groups.abs().amax(-1, keepdim=True) / (LARGEST_E2M1 * scale)
    scales = scales.clamp(max=LARGEST_FP8).to(torch.float8_e4m3fn).float() * scale
    codes = round_to_e2m1_(groups / torch.where(scales == 0, scale, scales))
    return (codes * scales).flatten(-2).to(x.dtype)


def _round_to_mxfp4(x: torch.Tensor) -> torch.Tensor:
    """Of x [..., in] in groups of 32. The largest magnitude of a group, rounded to a bit behind its first, which may
    make it the next power of two, decides the scale: what would be 7 or more becomes 3.5 or more.

    Source: `generate_mx_scales` of compressed-tensors 0.20, which vLLM rounds alike. OCP's specification rounds down,
    and clips all above 6 of what would become 8.
    """
    groups = x.float().unflatten(-1, (-1, MXFP4_GROUP))
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=2.0**-LARGEST_EXPONENT)
    power = ((largest.view(torch.int32) + (1 << 21)) & 0x7F800000).view(torch.float32) / 4
    return round_to_e2m1_(groups / power).mul_(power).flatten(-2).to(x.dtype)


class QuantSpec(NamedTuple):
    """What a program has to know to compute with a weight, or what a scheme says of weights of any shape.

    Attributes:
        block: rows and columns that share a scale; 0, of a scheme: all of them
        zero_points, g_idx: whether it has its own
        activations: how its inputs are rounded, if they are: see `Activations`
    """

    code_type: CodeType
    block: tuple[int, int]
    zero_points: bool
    g_idx: bool
    activations: Rounding | None

    def of(self, shape: tuple[int, int]) -> QuantSpec:
        """Return what a scheme says of weights of one shape."""
        return self._replace(block=(self.block[0] or shape[0], self.block[1] or shape[1]))


@dataclass(frozen=True)
class TwoLevelScales:
    """What NVFP4's scales are made of: `scales = codes / divisor`.

    Attributes:
        codes: float8_e4m3fn, in the shape of `scales`
        divisor: float32 [1], of the whole matrix; float64 where it is the reciprocal of what is stored, so that the
            reciprocal of that is the same again
    """

    codes: torch.Tensor
    divisor: torch.Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """`W[i, j] = (qweight[i, j] - zero_points[i // r, j // c]) * scales[i // r, j // c]`, W [out, in], block (r, c).

    Attributes:
        qweight: int8 in [-2^(b-1), 2^(b-1)) for b-bit integers, float8_e4m3fn for FP8 and for FP4, whose values are
            among those of E4M3; [out, in], unpacked
        scales: bfloat16 or float32, [ceil(out / r), ceil(in / c)]
        block: (1, group_size) for grouped integers, (128, 128) for FP8 blocks (edge blocks may be ragged), (1, in) for
            one scale per output channel, (out, in) for a single one
        zero_points: int8, in the shape of `scales`; None: symmetric, all zero
        g_idx: int32 [in], the group of each input channel where it is not j // c (dynamic act-order)
        activations: None: the inputs stay as they are
        two_level: what `scales` are made of, where they are stored so
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    code_type: CodeType
    zero_points: torch.Tensor | None = None
    g_idx: torch.Tensor | None = None
    activations: Activations | None = None
    two_level: TwoLevelScales | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.qweight.shape[0], self.qweight.shape[1])

    @property
    def bits(self) -> int:
        return bits_of(self.code_type)

    @property
    def kind(self) -> QuantSpec:
        activations = None if self.activations is None else self.activations.per
        return QuantSpec(self.code_type, self.block, self.zero_points is not None, self.g_idx is not None, activations)

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on another device; no copy where it is there already."""
        parts = {name: getattr(self, name) for name in ("qweight", "scales", "zero_points", "g_idx")}
        there = replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})
        levels = self.two_level and TwoLevelScales(self.two_level.codes.to(device), self.two_level.divisor.to(device))
        return replace(there, two_level=levels)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[out, in]; the product is taken in float32 and then rounded to `dtype`."""
        steps = self.qweight.float()
        if self.zero_points is not None:
            steps = steps - self._wide(self.zero_points)
        return (steps * self._wide(self.scales)).to(dtype)

    def _wide(self, blockwise: torch.Tensor) -> torch.Tensor:
        """float32: a block's number for each of its weights."""
        rows, columns = self.shape
        wide = blockwise.float().repeat_interleave(self.block[0], 0)[:rows]
        if self.g_idx is not None:
            return wide[:, self.g_idx.long()]
        return wide.repeat_interleave(self.block[1], 1)[:, :columns]


def bits_of(code_type: CodeType) -> int:
    return int(code_type.partition("_")[0].removeprefix("int").removeprefix("float"))


def held_type(code_type: CodeType) -> CodeType:
    """What programs hold such codes in, without loss: 2 and 3 bits in 4, 5 and 6 in 8."""
    if not is_integer(code_type):
        return code_type
    return "int4" if bits_of(code_type) <= 4 else "int8"


def is_integer(code_type: CodeType) -> bool:
    """Whether codes are integers, that can have zero points."""
    return code_type.startswith("int")
