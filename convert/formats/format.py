"""What a storage format has to say, and what it has to know of a scheme to write its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from llmc.convert.quantized_weight import Activations, QuantizedWeight, QuantSpec
from llmc.convert.safetensors_file import StoredTensor

Parts = Mapping[str, StoredTensor]


class Format(ABC):
    """One way to store a quantized matrix in safetensors.

    An instance stands for what config.json announces for some modules, and reads them: it sees the stored tensors of
    one module (`parts`: last name component → tensor, for instance `{"weight": …, "weight_scale_inv": …}`). Writing
    needs no instance: the class says which weights it has a place for, and what becomes of them.

    Attributes:
        name: As config.json or a recipe calls it.
        part_names: What a module of this format may store; any other last name component (`bias`) is another tensor.
        key: The part that tells this format from the others.
        qweight_part: The part that holds the quantized values.
        scales_part: The part that holds their scales.
        row_major: Whether both lie in rows of output channels, integers packed as ONNX packs them.
        cuts: Parts that are not cut with the rows of a weight: `whole` belongs to every slice, `none` to no slice, and
            of `refused` no slice can be told.
        narrows: Whether it has too few bits for some scales: `require_range` tells before the work, `encode` after.
        stacked: Whether families that have plain experts in stacks have the parts of these in stacks, too.
    """

    name: ClassVar[str]
    part_names: ClassVar[frozenset[str]]
    key: ClassVar[str]
    qweight_part: ClassVar[str]
    scales_part: ClassVar[str]
    row_major: ClassVar[bool] = True
    cuts: ClassVar[Mapping[str, Literal["whole", "none", "refused"]]] = {}
    narrows: ClassVar[bool] = False
    stacked: ClassVar[bool] = False

    @abstractmethod
    def matches(self, module: str) -> bool:
        """Tell whether a module that has this format's key is stored in this format."""

    @abstractmethod
    def shape(self, parts: Parts) -> tuple[int, int]:
        """Return [out, in] of the weight, from headers; InputError when the parts do not fit together."""

    @abstractmethod
    def kind(self, parts: Parts) -> QuantSpec:
        """Return `decode(parts).kind` without reading the weight; InputError when the parts do not fit together."""

    def activations_of(self, parts: Parts) -> Activations | None:
        """Return how inputs are rounded; None: they stay as they are."""
        return None

    @abstractmethod
    def decode(self, parts: Parts) -> QuantizedWeight:
        """Read quantized values and scales as they are stored."""

    @classmethod
    @abstractmethod
    def takes(cls, spec: QuantSpec) -> bool:
        """Tell whether weights of a scheme can be stored; `spec` is what the scheme says of weights of any shape."""

    @classmethod
    @abstractmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        """Return what is stored for a weight: by name, in the order it is written.

        Raises:
            InputError: What would be stored is not the weight.
        """

    @classmethod
    @abstractmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        """Return what config.json says about modules of a scheme that are stored so."""

    @classmethod
    def require_range(cls, module: str, weight: torch.Tensor, spec: QuantSpec) -> int:
        """Look at the scales that a weight will have, before any work.

        Args:
            module: Its name, for the error.
            weight: float32 [out, in].
            spec: What its scheme says of weights of any shape.

        Returns:
            How many of its groups lose precision: too little of this weight to tell whether the model makes much of
            it, with a large norm before it or a large weight behind it, or nothing.

        Raises:
            InputError: The scales cannot be stored.
        """
        return 0
