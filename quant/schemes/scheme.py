"""What a quantisation scheme has to say: its blocks, its scales, its codes, its bytes on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from llmc.convert.quantised_weight import CodeType, QuantisedWeight


class Scheme(ABC):
    """Symmetric: a weight is `code * scale`, one scale per block. Leading dimensions (experts) are batched."""

    name: str
    code_type: CodeType

    @abstractmethod
    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that share a scale in an [out, in] weight."""

    def check(self, weight_name: str, shape: tuple[int, int]) -> None:  # noqa: B027  # most schemes fit every shape
        """InputError when a weight of this shape cannot be stored in this scheme."""

    @abstractmethod
    def scales(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
        """[…, out / rows, in / columns] in the dtype that is stored, for float32 weight […, out, in].

        importance: […, in], how much an error in each input channel matters (the Hessian's diagonal).
        """

    @abstractmethod
    def round(self, ratio: torch.Tensor) -> torch.Tensor:
        """The nearest code, as float32, for each weight divided by its scale."""

    @abstractmethod
    def to_codes(self, rounded: torch.Tensor) -> torch.Tensor:
        """What `round` returned, in the dtype of `QuantisedWeight.codes`."""

    @abstractmethod
    def config_group(self) -> dict[str, Any]:
        """`format` and `weights` of a compressed-tensors config group."""

    @abstractmethod
    def stored(self, module: str, weight: QuantisedWeight) -> dict[str, torch.Tensor]:
        """The tensors on disk, by name, in the order they are written."""

    def expand(self, scales: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """One float32 scale per weight, […, out, in]."""
        rows, columns = self.block(shape)
        wide = scales.float().repeat_interleave(rows, -2)[..., : shape[0], :]
        return wide.repeat_interleave(columns, -1)[..., : shape[1]]
