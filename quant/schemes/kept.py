"""What is stored as it was read, and never made: schemes that no recipe can ask for."""

from __future__ import annotations

import torch

from llmc.quant.schemes.base import QuantParams, Scheme


class Kept(Scheme):
    """4-bit floats (E2M1) in groups of inputs."""

    code_type = "float4_e2m1fn"
    lowest, highest = -6.0, 6.0

    def __init__(self, name: str, group: int) -> None:
        self.name, self.sharing = name, (1, group)

    def grid(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> QuantParams:
        raise NotImplementedError(f"{self.name} is kept, not made")

    def round_(self, ratio: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError(f"{self.name} is kept, not made")

    def to_codes(self, steps: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError(f"{self.name} is kept, not made")


KEPT = {each.name: each for each in (Kept("nvfp4", 16), Kept("mxfp4", 32))}
