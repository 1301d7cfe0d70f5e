"""One quantized matrix, whatever its format: integer or float codes, and one scale per rectangular block; and how
the numbers that it is multiplied with are rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

CodeType = Literal["int2", "int3", "int4", "int5", "int6", "int8", "float8_e4m3fn", "float4_e2m1fn"]


LARGEST_FP8 = 448.0  # of E4M3
FP8_GROUP = 128  # channels of a row that share a scale, in DeepSeek's scheme


def round_to_fp8(x: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """What is left of x when it is divided by `scale`, rounded to E4M3 and multiplied by it again.

    The gradient passes as if nothing were rounded (straight-through, Bengio et al. 2013).
    """
    if x.requires_grad:
        rounded: torch.Tensor = _StraightThrough.apply(x, scale)
        return rounded
    codes = (x / scale).clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)
    return codes.to(x.dtype) * scale


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
        return round_to_fp8(x.detach(), scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


@dataclass(frozen=True)
class Activations:
    """How a layer's inputs are rounded to E4M3 in front of the product.

    Attributes:
        per: what shares a scale: "tensor" all inputs, "token" one row, "group" 128 channels of a row
        scale: found in calibration, for "tensor"; None: such that the largest magnitude becomes 448 (dynamic)
    """

    per: Literal["tensor", "token", "group"]
    scale: float | None = None

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., in]"""
        if self.scale is not None:
            return round_to_fp8(x, self.scale)
        parts = x.unflatten(-1, (-1, FP8_GROUP if self.per == "group" else x.shape[-1]))
        largest = parts.abs().amax(-1, keepdim=True)
        return round_to_fp8(parts, torch.where(largest == 0, 1.0, largest / LARGEST_FP8)).flatten(-2)


class QuantSpec(NamedTuple):
    """What a program has to know to compute with a weight, or what a scheme says of weights of any shape.

    Attributes:
        block: rows and columns that share a scale; 0, of a scheme: all of them
        zero_points, g_idx: whether it has its own
        activations: what shares a scale of its inputs, if they are rounded
    """

    code_type: CodeType
    block: tuple[int, int]
    zero_points: bool
    g_idx: bool
    activations: Literal["tensor", "token", "group"] | None

    def of(self, shape: tuple[int, int]) -> QuantSpec:
        """Return what a scheme says of weights of one shape."""
        return self._replace(block=(self.block[0] or shape[0], self.block[1] or shape[1]))


@dataclass(frozen=True)
class TwoLevelScales:
    """What NVFP4's scales are made of: `scales = codes / divisor`.

    Attributes:
        codes: float8_e4m3fn, in the shape of `scales`
        divisor: float32 [1], of the whole matrix
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
