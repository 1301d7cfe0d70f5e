"""4-bit floats (E2M1), two codes a byte along the input dimension, the lower four bits first.

NVFP4 has a scale in E4M3 for every 16 inputs, and one in float32 for the whole matrix. MXFP4 has a power of two (E8M0)
for every 32. compressed-tensors stores codes in `weight_packed`, scales in `weight_scale`; that of the whole matrix,
`weight_global_scale`, divides. Inputs that are rounded have scales of their own for as many channels, found as they
come; that of NVFP4's inputs as a whole, `input_global_scale`, divides, too.
Source: compressors/nvfp4 and compressors/mxfp4 of compressed-tensors 0.20.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from llmc.convert.bits import pack_e2m1, unpack_e2m1
from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.targets import Targets, read_targets
from llmc.convert.quantized_weight import (
    MXFP4_GROUP,
    NVFP4_GROUP,
    Activations,
    QuantizedWeight,
    QuantSpec,
    TwoLevelScales,
)
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError
from llmc.patterns import Budget


@dataclass(frozen=True)
class Float4(Format):
    """What all of them share.

    Attributes:
        group: Inputs that share a scale.
        scale_types: Of `scales_part`, as safetensors calls them.
        rounding: How inputs are rounded, if they are.
        rounds_inputs: Whether they are.
    """

    rounding: ClassVar[Literal["nvfp4", "mxfp4"]]
    group: ClassVar[int]
    scale_types: ClassVar[tuple[str, ...]]
    row_major = False  # no graph reads these codes where they lie

    targets: Targets = field(default_factory=Targets)
    rounds_inputs: bool = False

    def matches(self, module: str) -> bool:
        return self.targets.match(module)

    def shape(self, parts: Parts) -> tuple[int, int]:
        codes, scales = (parts.get(name) for name in (self.qweight_part, self.scales_part))
        if codes is None or scales is None:
            there, absent = parts[self.key], self.scales_part if scales is None else self.qweight_part
            raise InputError(f"{there.file}: {there.name} has no {absent} beside it; the checkpoint is incomplete")
        where = f"{codes.file}: {codes.name}"
        if codes.dtype != "U8" or scales.dtype not in self.scale_types:
            raise InputError(
                f"{where} is {codes.dtype}, its scales {scales.dtype}; must be U8 and {' or '.join(self.scale_types)}"
            )
        shape = self._shape(codes)
        if shape is None or shape[1] % self.group or scales.shape != (shape[0], shape[1] // self.group):
            raise InputError(
                f"{where} {list(codes.shape)} and its scales {list(scales.shape)} do not fit together as groups of "
                f"{self.group}"
            )
        return shape

    def _shape(self, codes: StoredTensor) -> tuple[int, int] | None:
        return (codes.shape[0], codes.shape[1] * 2) if len(codes.shape) == 2 else None

    def kind(self, parts: Parts) -> QuantSpec:
        self.shape(parts)
        return QuantSpec("float4_e2m1fn", (1, self.group), False, False, self._rounding(parts))

    def decode(self, parts: Parts) -> QuantizedWeight:
        codes = unpack_e2m1(parts[self.qweight_part].read().reshape(self.shape(parts)[0], -1))
        scales, two_level = self.scales(parts)
        found = self.activations_of(parts)
        return QuantizedWeight(codes, scales, (1, self.group), "float4_e2m1fn", activations=found, two_level=two_level)

    def _rounding(self, parts: Parts) -> Literal["nvfp4", "mxfp4"] | None:
        return self.rounding if self.rounds_inputs else None

    def activations_of(self, parts: Parts) -> Activations | None:
        rounding = self._rounding(parts)
        return None if rounding is None else Activations(rounding)

    @abstractmethod
    def scales(self, parts: Parts) -> tuple[torch.Tensor, TwoLevelScales | None]:
        """Read them: float32 [out, in / group], and what they are made of if they have two levels."""

    @classmethod
    def takes(cls, spec: QuantSpec) -> bool:
        fits = spec.code_type == "float4_e2m1fn" and spec.block == (1, cls.group)
        return fits and spec.activations in (None, cls.rounding)


class NVFP4(Float4):
    """As compressed-tensors stores it.

    Attributes:
        global_part: The scale of the whole matrix.
        input_part: The scale of all inputs.
    """

    name = "nvfp4-pack-quantized"
    part_names = frozenset({"weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"})
    cuts = dict.fromkeys(("weight_global_scale", "input_global_scale"), "whole")
    key = qweight_part = "weight_packed"
    scales_part = "weight_scale"
    global_part: ClassVar[str] = "weight_global_scale"
    input_part: ClassVar[str] = "input_global_scale"
    group, scale_types, rounding = NVFP4_GROUP, ("F8_E4M3",), "nvfp4"

    @classmethod
    def from_config(cls, group: Fields, budget: Budget | None = None) -> NVFP4:
        """`group`: one config group; `budget`: what the patterns of all groups may take."""
        return cls(_targets(group, cls.group, budget), _rounds_inputs(group, cls.group, "local", False))

    def shape(self, parts: Parts) -> tuple[int, int]:
        for name in (self.global_part, *([self.input_part] if self._rounding(parts) else [])):
            whole, codes = parts.get(name), parts[self.key]
            if whole is None or whole.dtype != "F32" or whole.shape not in ((), (1,)):
                found = "no such tensor" if whole is None else f"{whole.dtype} {list(whole.shape)}"
                raise InputError(f"{codes.file}: {codes.name}: {name} must be one F32, and is {found}")
        return super().shape(parts)

    def activations_of(self, parts: Parts) -> Activations | None:
        if self._rounding(parts) is None:
            return None
        # In a float64, so that the reciprocal of the reciprocal is the float32 that was stored.
        return Activations(self.rounding, self._input_scale(self._one(parts[self.input_part]).item()))

    @staticmethod
    def _input_scale(stored: float) -> float:
        """What multiplies."""
        return 1 / stored

    def scales(self, parts: Parts) -> tuple[torch.Tensor, TwoLevelScales | None]:
        codes, divisor = parts[self.scales_part].read(), self.whole(parts)
        return codes.float() / divisor, TwoLevelScales(codes, divisor)

    def whole(self, parts: Parts) -> torch.Tensor:
        """The scale of the whole matrix, float32 [1]."""
        return self._one(parts[self.global_part])

    def _one(self, stored: StoredTensor) -> torch.Tensor:
        scale = stored.read().reshape(1)
        if not 0 < scale.item() < float("inf"):
            raise InputError(f"{stored.file}: {stored.name} is {scale.item()}, not positive")
        return scale

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        assert weight.two_level is not None  # as what has been read has, and what `nvfp4` makes
        tensors = {
            f"{module}.weight_packed": pack_e2m1(weight.qweight),
            f"{module}.weight_scale": weight.two_level.codes,
            f"{module}.weight_global_scale": weight.two_level.divisor.float(),
        }
        if weight.activations is not None and weight.activations.scale is not None:
            tensors[f"{module}.input_global_scale"] = torch.tensor([1 / weight.activations.scale])
        return tensors

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        return _config(cls.name, spec, "tensor_group", cls.group, "torch.float8_e4m3fn", "local")


class MXFP4(Float4):
    """As compressed-tensors stores it."""

    name = "mxfp4-pack-quantized"
    part_names = frozenset({"weight_packed", "weight_scale"})
    key = qweight_part = "weight_packed"
    scales_part = "weight_scale"
    group, scale_types, rounding = MXFP4_GROUP, ("U8", "F8_E8M0"), "mxfp4"

    @classmethod
    def from_config(cls, group: Fields, budget: Budget | None = None) -> MXFP4:
        """`group`: one config group; `budget`: what the patterns of all groups may take."""
        return cls(_targets(group, cls.group, budget), _rounds_inputs(group, cls.group, True))

    def scales(self, parts: Parts) -> tuple[torch.Tensor, TwoLevelScales | None]:
        return parts[self.scales_part].read().view(torch.float8_e8m0fnu).float(), None

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        return {
            f"{module}.weight_packed": pack_e2m1(weight.qweight),
            f"{module}.weight_scale": weight.scales.to(torch.float8_e8m0fnu).view(torch.uint8),
        }

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        return _config(cls.name, spec, "group", cls.group, "torch.uint8", True)


def _targets(group: Fields, size: int, budget: Budget | None) -> Targets:
    weights = group.mapping("weights")
    weights.one_of("type", "float")
    weights.one_of("num_bits", 4)
    weights.one_of("group_size", size)
    weights.one_of("symmetric", True, default=True)
    return read_targets(group, budget)


def _rounds_inputs(group: Fields, size: int, *dynamic: str | bool) -> bool:
    """Whether they are, as the weights; `dynamic`: what config.json may say of the scales of `size` channels. What is
    rounded otherwise (to FP8, for instance) counts as inputs that stay as they are.
    """
    inputs = group.mapping("input_activations").config
    alike = (inputs.get("type"), inputs.get("num_bits"), inputs.get("group_size")) == ("float", 4, size)
    return alike and inputs.get("dynamic") in dynamic


def _config(
    name: str, spec: QuantSpec, strategy: str, size: int, scale_dtype: str, dynamic: str | bool
) -> dict[str, Any]:
    fp4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "group_size": size}
    fp4 |= {"scale_dtype": scale_dtype}
    group = {"format": name, "weights": fp4 | {"dynamic": False}}
    return group | ({"input_activations": fp4 | {"dynamic": dynamic}} if spec.activations else {})
