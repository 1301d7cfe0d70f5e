"""One quantised matrix, whatever its format: integer or float8 codes, and one scale per rectangular block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

CodeType = Literal["int4", "float8_e4m3fn"]


@dataclass(frozen=True)
class QuantisedWeight:
    """`W[i, j] = codes[i, j] * scales[i // block[0], j // block[1]]`, symmetric, `W` being [out, in].

    codes:  int8 in [-8, 7] for int4, float8_e4m3fn for FP8; [out, in], unpacked
    scales: bfloat16 or float32, [ceil(out / block[0]), ceil(in / block[1])]
    block:  (1, group_size) for grouped int4, (128, 128) for FP8 blocks (edge blocks may be ragged),
            (1, in) for one scale per output channel
    """

    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    code_type: CodeType

    @property
    def shape(self) -> tuple[int, int]:
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes on disk: packed codes and scales."""
        bits = 4 if self.code_type == "int4" else 8
        return self.codes.numel() * bits // 8 + self.scales.numel() * self.scales.element_size()

    def dequantise(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[out, in]; the product is taken in float32 and then rounded to `dtype`."""
        rows, cols = self.shape
        scales = self.scales.float().repeat_interleave(self.block[0], 0)[:rows]
        scales = scales.repeat_interleave(self.block[1], 1)[:, :cols]
        return (self.codes.float() * scales).to(dtype)
