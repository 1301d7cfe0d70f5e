"""compressed-tensors `pack-quantized`, 4 bits: eight codes to an int32 along the input dimension.

A code c in [-8, 7] is stored as c + 8; the first of eight lies in the lowest four bits. `weight_shape` holds
[out, in], `weight_scale` is [out, in / group_size] ([out, 1] for strategy `channel`) and multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from llmc.convert.fields import Fields
from llmc.convert.quantised_weight import QuantisedWeight
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError


@dataclass(frozen=True)
class PackQuantized:
    key: str = "weight_packed"

    @classmethod
    def from_config(cls, weights: Fields) -> PackQuantized:
        """`weights`: the arguments of one config group."""
        weights.one_of("type", "int")
        weights.one_of("num_bits", 4)
        weights.one_of("symmetric", True, default=True)
        weights.one_of("strategy", "group", "channel")
        return cls()

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
        packed, scale = parts["weight_packed"], parts.get("weight_scale")
        where = f"{packed.file}: {packed.name}"
        if scale is None:
            raise InputError(f"{where} has no weight_scale beside it; the checkpoint is incomplete")
        if packed.dtype != "I32" or len(packed.shape) != 2 or scale.dtype not in ("BF16", "F16", "F32"):
            raise InputError(f"{where} is {packed.dtype}, its scales {scale.dtype}; must be I32 and floats")
        rows, columns = packed.shape[0], packed.shape[1] * 8
        if len(scale.shape) != 2 or scale.shape[0] != rows or not scale.shape[1] or columns % scale.shape[1]:
            raise InputError(f"{where}: scales {list(scale.shape)} do not fit a [{rows}, {columns}] weight")
        return rows, columns

    def decode(self, parts: Mapping[str, StoredTensor]) -> QuantisedWeight:
        rows, columns = self.shape(parts)
        stored = parts["weight_shape"].read().tolist() if "weight_shape" in parts else [rows, columns]
        if stored != [rows, columns]:
            packed = parts["weight_packed"]
            raise InputError(f"{packed.file}: {packed.name} is padded, its weight_shape is {stored}")
        scales = parts["weight_scale"].read()
        codes = unpack_int4(parts["weight_packed"].read())
        return QuantisedWeight(codes, scales, (1, columns // scales.shape[1]), "int4")


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int32 [out, in / 8] → int8 [out, in] in [-8, 7]."""
    pairs = packed.contiguous().view(torch.uint8)  # little-endian: byte k holds codes 2k (low) and 2k + 1
    codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
    return codes.to(torch.int8) - 8


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpack_int4`; the last dimension must be a multiple of 8."""
    nibbles = (codes + 8).to(torch.uint8)
    return (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).contiguous().view(torch.int32)
