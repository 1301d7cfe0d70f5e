"""What a quantization scheme has to say: its blocks, its grid, its codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from llmc.convert.quantized_weight import Activations, CodeType, QuantizedWeight, QuantSpec, TwoLevelScales


class QuantParams(NamedTuple):
    """The values that a block can have: `(code - zero) * scale`.

    Attributes:
        scales: […, out / rows, in / columns] in the dtype that is stored
        zero_points: int8 in the same shape; None: symmetric
    """

    scales: torch.Tensor
    zero_points: torch.Tensor | None = None


class Scheme(ABC):
    """Leading dimensions (experts) are batched. A step is a code less its zero."""

    name: str
    code_type: CodeType
    sharing: tuple[int, int]  # rows and columns that share a scale; 0: all of them
    lowest: float  # step, before zeros
    highest: float
    symmetric: bool = True
    dynamic_groups: bool = False  # groups are of channels that matter alike, wherever they lie (act-order, `g_idx`)
    activations: Activations | None = None  # without the scale that calibration finds
    scaled_as_a_whole: bool = False  # with a scale of the whole matrix, which modules that read one input share

    def __repr__(self) -> str:
        return f"Scheme({self.name!r})"

    @property
    def spec(self) -> QuantSpec:
        """What formats have to know of it."""
        activations = None if self.activations is None else self.activations.per
        return QuantSpec(self.code_type, self.sharing, not self.symmetric, self.dynamic_groups, activations)

    def block(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that share a scale in an [out, in] weight."""
        return self.spec.of(shape).block

    def check(self, weight_name: str, shape: tuple[int, int]) -> None:  # noqa: B027  # most schemes fit every shape
        """InputError when a weight of this shape cannot be stored in this scheme."""

    def stores(self, weight: QuantizedWeight) -> bool:
        """Whether these codes are, as they are, what this scheme writes."""
        return weight.kind == self.spec.of(weight.shape)

    @property
    def positive(self) -> Scheme:
        """The same with positive scales alone."""
        return self

    @property
    def measures_inputs(self) -> bool:
        """Whether calibration has to find how large a layer's inputs get, whatever the method."""
        return self.activations is not None and self.activations.measured

    @abstractmethod
    def grid(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> QuantParams:
        """The grid for float32 weight […, out, in].

        Args:
            importance: […, in], how much an error in each input channel matters (the Hessian's diagonal).
        """

    @abstractmethod
    def round_(self, ratio: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        """Turns each weight divided by its scale into the nearest step, in place; zeros as wide as the weights."""

    @abstractmethod
    def to_codes(self, steps: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
        """What `round_` made, in the dtype of `QuantizedWeight.codes`; zeros as wide as the weights."""

    def two_level(self, scales: torch.Tensor) -> TwoLevelScales | None:
        """What the scales [out / rows, in / columns] that `grid` found for a matrix are stored as, if in two levels."""
        return None

    def expand(self, blockwise: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """A block's number for each of its weights, float32 […, out, in]."""
        rows, columns = self.block(shape)
        wide = blockwise.float()
        if rows > 1:
            wide = wide.repeat_interleave(rows, -2)[..., : shape[0], :]
        return wide.repeat_interleave(columns, -1)[..., : shape[1]]
