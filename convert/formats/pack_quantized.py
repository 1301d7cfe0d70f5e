"""compressed-tensors `pack-quantized`: integers of 2, 3, 4, 5, 6 or 8 bits, packed along the input dimension.

`weight_packed` holds codes as `llmc.convert.bits` packs them, `weight_shape` [out, in], `weight_scale` is
[out, in / group_size] ([out, 1] for strategy `channel`) and multiplies. Asymmetric weights have a `weight_zero_point`,
packed along the output dimension; with dynamic act-order `weight_g_idx` [in] tells each input channel's group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from llmc.convert.bits import pack, unpack
from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.targets import Targets, read_targets
from llmc.convert.quantized_weight import CodeType, QuantizedWeight, QuantSpec, bits_of, is_integer
from llmc.errors import InputError
from llmc.patterns import Budget


@dataclass(frozen=True)
class PackQuantized(Format):
    """Attributes `bits` and `symmetric` are those of one config group, `targets` the modules that it is for."""

    name = "pack-quantized"
    part_names = frozenset({"weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"})
    cuts = {"weight_g_idx": "whole", "weight_shape": "none"}  # noqa: RUF012  # ClassVar in the base
    key = qweight_part = "weight_packed"
    scales_part = "weight_scale"

    bits: int
    symmetric: bool
    targets: Targets

    @classmethod
    def from_config(cls, group: Fields, budget: Budget | None = None) -> PackQuantized:
        """`group`: one config group; `budget`: what the patterns of all groups may take."""
        weights = group.mapping("weights")
        weights.one_of("type", "int")
        bits = weights.one_of("num_bits", 4, 8, 3, 2, 5, 6)
        weights.one_of("strategy", "group", "channel")
        symmetric = weights.boolean("symmetric", True)
        group.require("input_activations", None, "integer weights take inputs as they are")
        return cls(bits, symmetric, read_targets(group, budget))

    def matches(self, module: str) -> bool:
        return self.targets.match(module)

    def shape(self, parts: Parts) -> tuple[int, int]:
        packed, scale = parts["weight_packed"], parts.get("weight_scale")
        where = f"{packed.file}: {packed.name}"
        if scale is None:
            raise InputError(f"{where} has no weight_scale beside it; the checkpoint is incomplete")
        if packed.dtype != "I32" or len(packed.shape) != 2 or scale.dtype not in ("BF16", "F16", "F32"):
            raise InputError(f"{where} is {packed.dtype}, its scales {scale.dtype}; must be I32 and floats")
        rows, columns = packed.shape[0], packed.shape[1] * 32 // self.bits
        if len(scale.shape) != 2 or scale.shape[0] != rows or not scale.shape[1] or columns % scale.shape[1]:
            raise InputError(f"{where}: scales {list(scale.shape)} do not fit a [{rows}, {columns}] weight")
        zeros, groups = parts.get("weight_zero_point"), parts.get("weight_g_idx")
        if (zeros is None) != self.symmetric:
            raise InputError(
                f"{where}: config.json says `symmetric: {str(self.symmetric).lower()}`, the tensors do not"
            )
        if zeros is not None and (zeros.dtype, zeros.shape) != ("I32", (-(-rows * self.bits // 32), scale.shape[1])):
            raise InputError(f"{where}: zero points {list(zeros.shape)} do not fit scales {list(scale.shape)}")
        if groups is not None and (groups.dtype not in ("I32", "I64") or groups.shape != (columns,)):
            raise InputError(f"{where}: weight_g_idx {list(groups.shape)} does not fit {columns} inputs")
        return rows, columns

    def kind(self, parts: Parts) -> QuantSpec:
        block = (1, self.shape(parts)[1] // parts["weight_scale"].shape[1])
        return QuantSpec(self._code_type, block, not self.symmetric, "weight_g_idx" in parts, None)

    def decode(self, parts: Parts) -> QuantizedWeight:
        rows, columns = self.shape(parts)
        packed = parts["weight_packed"]
        stored = parts["weight_shape"].read().tolist() if "weight_shape" in parts else [rows, columns]
        if stored != [rows, columns]:
            raise InputError(f"{packed.file}: {packed.name} is padded, its weight_shape is {stored}")
        scales, zeros, groups = parts["weight_scale"].read(), None, None
        if "weight_zero_point" in parts:
            zeros = unpack(parts["weight_zero_point"].read().T, self.bits, rows).T.contiguous()
        if "weight_g_idx" in parts:
            groups = parts["weight_g_idx"].read().int()
            if not ((groups >= 0) & (groups < scales.shape[1])).all():
                raise InputError(f"{packed.file}: {packed.name}: weight_g_idx names groups that have no scale")
        codes = unpack(packed.read(), self.bits, columns)
        return QuantizedWeight(codes, scales, (1, columns // scales.shape[1]), self._code_type, zeros, groups)

    @property
    def _code_type(self) -> CodeType:
        return cast(CodeType, f"int{self.bits}")

    @classmethod
    def takes(cls, spec: QuantSpec) -> bool:
        """Integers whose groups lie side by side: compressed-tensors has dropped dynamic act-order."""
        return is_integer(spec.code_type) and not spec.g_idx

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        tensors = {
            f"{module}.weight_packed": pack(weight.qweight, weight.bits),
            f"{module}.weight_scale": weight.scales,
            f"{module}.weight_shape": torch.tensor(weight.shape),
        }
        if weight.zero_points is not None:  # packed along the output channels
            tensors[f"{module}.weight_zero_point"] = pack(weight.zero_points.T, weight.bits).T.contiguous()
        return tensors

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        bits, size = bits_of(spec.code_type), spec.block[1]
        weights = {"num_bits": bits, "type": "int", "symmetric": not spec.zero_points, "dynamic": False}
        sharing = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
        return {"format": cls.name, "weights": weights | sharing}
