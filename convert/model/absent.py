"""The place of a block that a layer does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from llmc.convert.spec import AbsentSpec


class Absent(nn.Module):
    """Has no weights, and is never called."""

    def __init__(self, spec: AbsentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.cache_scales: dict[str, float] = {}

    def inner_inputs(self) -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {}

    def entries(self, x: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def mix(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the layer has no such block")
