"""compressed-tensors `float-quantized`: `weight` in E4M3 and a `weight_scale` that multiplies.

The scale is [out, 1] (strategy `channel`) or [ceil(out / rows), ceil(in / columns)] (strategy `block`, edge
blocks ragged).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmc.convert.fields import Fields
from llmc.convert.quantised_weight import QuantisedWeight
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError


@dataclass(frozen=True)
class FloatQuantized:
    block_size: tuple[int, int] | None  # None: every scale is per channel
    key: str = "weight_scale"

    @classmethod
    def from_config(cls, weights: Fields) -> FloatQuantized:
        """`weights`: the arguments of one config group."""
        weights.one_of("type", "float")
        weights.one_of("num_bits", 8)
        weights.one_of("symmetric", True, default=True)
        per_channel = weights.one_of("strategy", "channel", "block") == "channel"
        return cls(None if per_channel else weights.block("block_structure"))

    @classmethod
    def merge(cls, groups: list[FloatQuantized]) -> FloatQuantized:
        """One format for all config groups: the shape of a scale tells channel from block."""
        sizes = {group.block_size for group in groups} - {None}
        if len(sizes) > 1:
            raise InputError("`quantization_config.config_groups` has two different FP8 block_structures")
        return cls(sizes.pop() if sizes else None)

    def matches(self, _: str) -> bool:
        return True

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
        codes = parts.get("weight")
        if codes is None:
            scale = parts[self.key]
            raise InputError(f"{scale.file}: {scale.name} has no weight beside it; download the file again")
        if codes.dtype != "F8_E4M3" or len(codes.shape) != 2:
            raise InputError(f"{codes.file}: {codes.name} is {codes.dtype} {list(codes.shape)}, no FP8 matrix")
        self._block(parts)
        return codes.shape[0], codes.shape[1]

    def decode(self, parts: Mapping[str, StoredTensor]) -> QuantisedWeight:
        codes, scales = parts["weight"].read(), parts[self.key].read()
        return QuantisedWeight(codes, scales, self._block(parts), "float8_e4m3fn")

    def _block(self, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
        (rows, columns), scale = parts["weight"].shape, parts[self.key]
        if scale.dtype not in ("F32", "BF16"):
            raise InputError(f"{scale.file}: {scale.name} is {scale.dtype}; scales are F32 or BF16")
        candidates = [(1, columns)] if self.key == "weight_scale" else []
        candidates += [self.block_size] if self.block_size else []
        for block in candidates:
            if scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
                return block
        raise InputError(
            f"{scale.file}: {scale.name} has shape {list(scale.shape)}, which does not fit the "
            f"[{rows}, {columns}] weight in blocks of {' or '.join(map(str, candidates))}"
        )
