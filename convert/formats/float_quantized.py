"""compressed-tensors `float-quantized`: `weight` in E4M3 and a `weight_scale` that multiplies.

The scale is [1] (strategy `tensor`), [out, 1] (`channel`) or [ceil(out / rows), ceil(in / columns)] (`block`, edge
blocks ragged). Inputs that are rounded by a scale of their own have it in `input_scale` [1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.targets import Targets, read_targets
from llmc.convert.quantized_weight import FP8_GROUP, Activations, QuantizedWeight, QuantSpec
from llmc.errors import InputError
from llmc.patterns import Budget


@dataclass(frozen=True)
class FloatQuantized(Format):
    """Attributes are those of one config group; `block_size`, rows and columns, belongs to strategy block."""

    name = "float-quantized"
    part_names = frozenset({"weight", "weight_scale", "input_scale"})
    cuts = {"input_scale": "whole"}  # noqa: RUF012  # ClassVar in the base
    key = scales_part = "weight_scale"
    qweight_part = "weight"
    input_part: ClassVar[str] = "input_scale"
    scale_types: ClassVar[tuple[str, ...]] = ("F32", "BF16")

    strategy: str
    block_size: tuple[int, int] | None = None
    activations: Activations | None = None
    targets: Targets = field(default_factory=Targets)

    @classmethod
    def from_config(cls, group: Fields, budget: Budget | None = None) -> FloatQuantized:
        """`group`: one config group; `budget`: what the patterns of all groups may take."""
        weights = group.mapping("weights")
        weights.one_of("type", "float")
        weights.one_of("num_bits", 8)
        weights.one_of("symmetric", True, default=True)
        strategy = weights.one_of("strategy", "channel", "block", "tensor")
        block = weights.block("block_structure") if strategy == "block" else None
        return cls(strategy, block, _activations(group.mapping("input_activations")), read_targets(group, budget))

    def matches(self, module: str) -> bool:
        return self.targets.match(module)

    def shape(self, parts: Parts) -> tuple[int, int]:
        codes = parts.get("weight")
        if codes is None:
            scale = parts[self.key]
            raise InputError(f"{scale.file}: {scale.name} has no weight beside it; download the file again")
        if codes.dtype != "F8_E4M3" or len(codes.shape) != 2:
            raise InputError(f"{codes.file}: {codes.name} is {codes.dtype} {list(codes.shape)}, no FP8 matrix")
        static = self.activations is not None and self.activations.per == "tensor"
        given = parts.get(self.input_part)
        if static != (given is not None):
            raise InputError(
                f"{codes.file}: {codes.name}: config.json and {self.input_part} disagree on whether inputs are rounded "
                "by one"
            )
        if given is not None and (given.dtype not in ("F32", "BF16", "F16") or given.shape not in ((), (1,))):
            raise InputError(f"{given.file}: {given.name} is {given.dtype} {list(given.shape)}, not one float")
        if self.activations is not None and self.activations.per == "group" and codes.shape[1] % FP8_GROUP:
            raise InputError(
                f"{codes.file}: {codes.name}: inputs are rounded {FP8_GROUP} at a time, of {codes.shape[1]}"
            )
        self._block(parts)
        return codes.shape[0], codes.shape[1]

    def kind(self, parts: Parts) -> QuantSpec:
        activations = None if self.activations is None else self.activations.per
        return QuantSpec("float8_e4m3fn", self._block(parts), False, False, activations)

    def decode(self, parts: Parts) -> QuantizedWeight:
        codes, scales, block = parts["weight"].read(), parts[self.key].read(), self._block(parts)
        if scales.dtype not in (torch.float32, torch.bfloat16):
            scales = scales.float()
        scales = scales.reshape(-(-codes.shape[0] // block[0]), -(-codes.shape[1] // block[1]))
        return QuantizedWeight(codes, scales, block, "float8_e4m3fn", activations=self.activations_of(parts))

    def activations_of(self, parts: Parts) -> Activations | None:
        if self.input_part not in parts:
            return self.activations
        stored = parts[self.input_part]
        scale = stored.read().float().reshape(()).item()
        if not 0 < scale < float("inf"):
            raise InputError(f"{stored.file}: {stored.name} is {scale}, not positive")
        return Activations("tensor", scale)

    def _block(self, parts: Parts) -> tuple[int, int]:
        (rows, columns), scale = parts["weight"].shape, parts[self.key]
        if scale.dtype not in self.scale_types:
            raise InputError(f"{scale.file}: {scale.name} is {scale.dtype}; scales are {' or '.join(self.scale_types)}")
        block = self.block_size or ((1, columns) if self.strategy == "channel" else (rows, columns))
        count = (-(-rows // block[0]), -(-columns // block[1]))
        if scale.shape == count or (self.strategy == "tensor" and scale.shape in ((), (1,))):
            return block
        raise InputError(
            f"{scale.file}: {scale.name} has shape {list(scale.shape)}, which does not fit the "
            f"[{rows}, {columns}] weight in blocks of {block}"
        )

    @classmethod
    def takes(cls, spec: QuantSpec) -> bool:
        return spec.code_type == "float8_e4m3fn" and spec.activations not in ("nvfp4", "mxfp4")

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        scales = weight.scales.flatten() if _strategy(spec) == "tensor" else weight.scales
        tensors = {f"{module}.weight": weight.qweight, f"{module}.weight_scale": scales}
        if weight.activations is not None and weight.activations.scale is not None:
            tensors[f"{module}.input_scale"] = torch.tensor([weight.activations.scale])
        return tensors

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
        weights: dict[str, Any] = fp8 | {"dynamic": False, "strategy": _strategy(spec)}
        if weights["strategy"] == "block":
            weights["block_structure"] = list(spec.block)
        group: dict[str, Any] = {"format": cls.name, "weights": weights}
        if spec.activations is not None:
            inputs = fp8 | {"dynamic": spec.activations != "tensor", "strategy": spec.activations}
            if spec.activations == "group":
                inputs["group_size"] = FP8_GROUP
            group["input_activations"] = inputs
        return group


def _strategy(spec: QuantSpec) -> str:
    return {(0, 0): "tensor", (1, 0): "channel"}.get(spec.block, "block")


def _activations(inputs: Fields) -> Activations | None:
    if not inputs.config:
        return None
    inputs.one_of("type", "float")
    inputs.one_of("num_bits", 8)
    if not inputs.boolean("dynamic", False):
        inputs.one_of("strategy", "tensor")
        return Activations("tensor")
    if inputs.one_of("strategy", "token", "group") == "token":
        return Activations("token")
    inputs.one_of("group_size", FP8_GROUP)
    return Activations("group")
