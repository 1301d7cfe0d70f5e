"""8-bit floats (E4M3), one scale per 128x128 block or per output channel; compressed-tensors `float-quantized`."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from llmc.convert.quantised_weight import QuantisedWeight
from llmc.quant.schemes.scheme import Grid, Scheme

_LARGEST = 448.0  # of E4M3


class FP8(Scheme):
    """Weights only: activations stay as they are. `block_structure` None means one scale per output channel."""

    code_type = "float8_e4m3fn"

    def __init__(self, name: str, block_structure: tuple[int, int] | None) -> None:
        self.name, self.block_structure = name, block_structure

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        return self.block_structure or (1, shape[1])

    def grid(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> Grid:
        """Scales are float32; the largest weight of a block becomes 448 (DeepSeek-V3, section 3.3). A float format
        gains nothing from clipping, so `importance` is not used. Edge blocks are padded with zeros."""
        out, columns = weight.shape[-2:]
        rows_of_block, columns_of_block = self.block((out, columns))
        padding = (0, -columns % columns_of_block, 0, -out % rows_of_block)
        blocks = functional.pad(weight, padding).unflatten(-1, (-1, columns_of_block))
        largest = blocks.unflatten(-3, (-1, rows_of_block)).abs().amax((-1, -3))
        return Grid(torch.where(largest == 0, 1.0, largest / _LARGEST))

    def round_(self, ratio: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        return ratio.copy_(self.to_codes(ratio))

    def to_codes(self, steps: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        return steps.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)

    def config_group(self) -> dict[str, Any]:
        weights: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
        if self.block_structure:
            weights |= {"strategy": "block", "block_structure": list(self.block_structure)}
        else:
            weights |= {"strategy": "channel"}
        return {"format": "float-quantized", "weights": weights}

    def stored(self, module: str, weight: QuantisedWeight) -> dict[str, torch.Tensor]:
        return {f"{module}.weight": weight.codes, f"{module}.weight_scale": weight.scales}


SCHEMES = (FP8("fp8-block", (128, 128)), FP8("fp8-channel", None))
