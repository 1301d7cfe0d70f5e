"""compressed-tensors `pack-quantized`: integers of 2, 3, 4 or 8 bits, packed along the input dimension.

`weight_packed` holds codes as `llmc.convert.bits` packs them, `weight_shape` [out, in], `weight_scale` is
[out, in / group_size] ([out, 1] for strategy `channel`) and multiplies. Asymmetric weights have a `weight_zero_point`,
packed along the output dimension; with dynamic act-order `weight_g_idx` [in] tells each input channel's group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from llmc.convert.bits import unpack
from llmc.convert.fields import Fields
from llmc.convert.formats.targets import Targets, read_targets
from llmc.convert.quantized_weight import CodeType, QuantizedWeight
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError
from llmc.patterns import Budget


@dataclass(frozen=True)
class PackQuantized:
    bits: int
    symmetric: bool
    targets: Targets
    key: str = "weight_packed"

    @classmethod
    def from_config(cls, group: Fields, budget: Budget | None = None) -> PackQuantized:
        """`group`: one config group; `budget`: what the patterns of all groups may take."""
        weights = group.mapping("weights")
        weights.one_of("type", "int")
        bits = weights.one_of("num_bits", 4, 8, 3, 2)
        weights.one_of("strategy", "group", "channel")
        symmetric = weights.boolean("symmetric", True)
        group.require("input_activations", None, "integer weights take inputs as they are")
        return cls(bits, symmetric, read_targets(group, budget))

    def matches(self, module: str) -> bool:
        return self.targets.match(module)

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
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

    def activations_of(self, _: Mapping[str, StoredTensor]) -> None:
        return None

    def decode(self, parts: Mapping[str, StoredTensor]) -> QuantizedWeight:
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
        block, code_type = (1, columns // scales.shape[1]), cast(CodeType, f"int{self.bits}")
        return QuantizedWeight(codes, scales, block, code_type, zeros, groups)
