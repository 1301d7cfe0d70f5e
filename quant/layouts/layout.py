"""What a layout has to say: which schemes it has a place for, its tensors, its config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from llmc.convert.quantized_weight import QuantizedWeight
from llmc.quant.schemes.scheme import Scheme

DEFAULT_LAYOUT = "compressed-tensors"


class Layout(ABC):
    name: str
    stores: str  # for people: what it has a place for,
    readers: str  # and who reads it
    takes_cache_scales: bool = False
    narrows: bool = False  # has too few bits for some scales: `require_range` tells before the work, `tensors` after

    @abstractmethod
    def takes(self, scheme: Scheme) -> bool:
        """Whether weights of this scheme can be stored."""

    def require_range(self, module: str, weight: torch.Tensor, scheme: Scheme) -> int:
        """InputError where the scales that float32 `weight` [out, in] will have cannot be stored. Returns how many of
        its groups lose precision all the same: too little of this weight to tell whether the model makes much of it,
        with a large norm before it or a large weight behind it, or nothing."""
        raise NotImplementedError  # of layouts that narrow

    def obstacle(self, schemes: Mapping[str, Collection[str]], plain_experts: bool) -> str:
        """Why transformers, which otherwise loads this layout, refuses what is stored so; empty: it does not.

        schemes: by role; plain_experts: whether some experts stay floats.
        """
        return ""

    @abstractmethod
    def tensors(self, module: str, scheme: Scheme, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
        """What is stored for a weight: by name, in the order it is written; InputError where that is not the weight."""

    @abstractmethod
    def config(self, schemes: dict[str, str], all_modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        """`quantization_config` of config.json.

        schemes: quantized module → scheme name; all_modules: every linear layer that could have been; fp8_cache:
        whether there are scales for the attention cache.
        """
