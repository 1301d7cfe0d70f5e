"""8-bit floats (E4M3), one scale per 128x128 block, output channel or tensor."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from llmc.convert.quantized_weight import FP8_GROUP, LARGEST_FP8, Activations
from llmc.errors import InputError
from llmc.quant.schemes.base import QuantParams, Scheme

_BLOCK = 128


class FP8(Scheme):
    """With `-static` behind its name a scheme rounds a layer's inputs, too, by a scale found in calibration; with
    `-dynamic` by one per token, or per token and 128 channels where weights are in blocks (DeepSeek-V3, section 3.3).
    """

    code_type = "float8_e4m3fn"
    lowest, highest = -LARGEST_FP8, LARGEST_FP8

    def __init__(
        self, strategy: Literal["block", "channel", "tensor"], activations: Literal["", "static", "dynamic"] = ""
    ) -> None:
        self.sharing = {"block": (_BLOCK, _BLOCK), "channel": (1, 0), "tensor": (0, 0)}[strategy]
        self.name = f"fp8-{strategy}" + (f"-{activations}" if activations else "")
        if activations == "static":
            self.activations = Activations("tensor")
        elif activations == "dynamic":
            self.activations = Activations("group" if strategy == "block" else "token")

    def check(self, weight_name: str, shape: tuple[int, int]) -> None:
        if self.activations is not None and self.activations.per == "group" and shape[1] % FP8_GROUP:
            raise InputError(
                f"{weight_name} has {shape[1]} inputs, no multiple of {FP8_GROUP}; use fp8-channel-dynamic"
            )

    def grid(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> QuantParams:
        """Scales are float32; the largest weight of a block becomes 448 (DeepSeek-V3, section 3.3). A float format
        gains nothing from clipping, so `importance` is not used. Edge blocks are padded with zeros.
        """
        out, columns = weight.shape[-2:]
        rows_of_block, columns_of_block = self.block((out, columns))
        padding = (0, -columns % columns_of_block, 0, -out % rows_of_block)
        blocks = functional.pad(weight, padding).unflatten(-1, (-1, columns_of_block))
        largest = blocks.unflatten(-3, (-1, rows_of_block)).abs().amax((-1, -3))
        return QuantParams(torch.where(largest == 0, 1.0, largest / LARGEST_FP8))

    def round_(self, ratio: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        return ratio.copy_(self.to_codes(ratio))

    def to_codes(self, steps: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        return steps.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)


SCHEMES = (
    FP8("block"),
    FP8("block", "dynamic"),
    *(FP8(strategy, activations) for strategy in ("channel", "tensor") for activations in ("", "static", "dynamic")),
)
