"""GPTQ's own layout (AutoGPTQ, GPTQModel), versions 1 and 2: integers of 2, 3, 4 or 8 bits, packed along the inputs.

`qweight` int32 [in bits / 32, out] holds unsigned codes, `qzeros` [groups, out bits / 32] their zeros, `scales`
[groups, out], `g_idx` [in] the group of each input channel. Version 1 stores each zero less one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch

from llmc.convert.bits import pack, unpack
from llmc.convert.fields import Fields
from llmc.convert.formats.targets import MAX_PATTERNS, pattern_of
from llmc.convert.quantized_weight import CodeType, QuantizedWeight
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError
from llmc.patterns import Budget, Pattern


@dataclass(frozen=True)
class GPTQ:
    bits: int
    version: int
    pattern: Pattern | None = None  # that the beginning of a module's name matches
    key: str = "qweight"

    @classmethod
    def from_config(cls, quantization: Fields) -> tuple[GPTQ, ...]:
        """The formats of the modules that `dynamic` makes exceptions of (`+:` and a pattern), and of all others."""
        layout = quantization.one_of("checkpoint_format", "gptq", "gptq_v2", default="gptq")
        version, bits = 2 if layout == "gptq_v2" else 1, quantization.one_of("bits", 4, 8, 3, 2)
        dynamic, exceptions = quantization.mapping("dynamic"), []
        if len(dynamic.config) > MAX_PATTERNS:
            raise InputError(f"`{dynamic.prefix}` has {len(dynamic.config):,} patterns, of at most {MAX_PATTERNS:,}")
        budget = Budget()
        for text in dynamic.config:
            pattern = pattern_of(f"{dynamic.prefix}{text[:80]}", text.removeprefix("+:").removeprefix("-:"), budget)
            if not text.startswith("-:"):  # modules that are left as they are
                its_bits = dynamic.mapping(text).one_of("bits", 4, 8, 3, 2, default=bits)
                exceptions.append(cls(its_bits, version, pattern))
        return (*exceptions, cls(bits, version))

    def matches(self, module: str) -> bool:
        return self.pattern is None or self.pattern.match(module)

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, int]:
        codes = parts["qweight"]
        where = f"{codes.file}: {codes.name}"
        if missing := sorted({"qzeros", "scales", "g_idx"} - parts.keys()):
            raise InputError(f"{where} has no {missing[0]} beside it; the checkpoint is incomplete")
        if codes.dtype != "I32" or len(codes.shape) != 2 or parts["scales"].dtype not in ("F16", "BF16", "F32"):
            raise InputError(f"{where} is {codes.dtype}, its scales {parts['scales'].dtype}; must be I32 and floats")
        columns, rows = codes.shape[0] * 32 // self.bits, codes.shape[1]
        groups = parts["scales"].shape[0] if parts["scales"].shape else 0
        expected = {"scales": (groups, rows), "qzeros": (groups, -(-rows * self.bits // 32)), "g_idx": (columns,)}
        for name, shape in expected.items():
            if parts[name].shape != shape or not groups or columns % groups:
                raise InputError(f"{where}: {name} {list(parts[name].shape)} does not fit a [{rows}, {columns}] weight")
        return rows, columns

    def activations_of(self, _: Mapping[str, StoredTensor]) -> None:
        return None

    def decode(self, parts: Mapping[str, StoredTensor]) -> QuantizedWeight:
        rows, columns = self.shape(parts)
        scales = parts["scales"].read().T.contiguous()
        size, limit = columns // scales.shape[1], 1 << self.bits - 1
        codes = unpack(parts["qweight"].read().T, self.bits, columns)
        zeros = unpack(parts["qzeros"].read(), self.bits, rows).T.short()
        if self.version == 1:
            zeros = torch.where(zeros == limit - 1, -limit, zeros + 1)  # one less, in as many bits
        groups = parts["g_idx"].read().int()
        if not ((groups >= 0) & (groups < scales.shape[1])).all():
            raise InputError(f"{parts['g_idx'].file}: {parts['g_idx'].name} names groups that have no scale")
        plain = torch.equal(groups, torch.arange(columns, dtype=torch.int32) // size)
        return QuantizedWeight(
            codes,
            scales,
            (1, size),
            cast(CodeType, f"int{self.bits}"),
            zeros.to(torch.int8).contiguous() if zeros.any() else None,
            None if plain else groups,
        )


def gptq_tensors(module: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """A weight in version 2 of the layout, whose zeros are what they are; scales become float16."""
    bits, groups, columns = weight.bits, weight.g_idx, weight.shape[1]
    zeros = weight.zero_points if weight.zero_points is not None else torch.zeros_like(weight.scales, dtype=torch.int8)
    if groups is None:
        groups = torch.arange(columns, dtype=torch.int32) // weight.block[1]
    return {
        f"{module}.qweight": pack(weight.qweight, bits).T.contiguous(),
        f"{module}.qzeros": pack(zeros.T.contiguous(), bits),
        f"{module}.scales": weight.scales.T.to(torch.float16).contiguous(),
        f"{module}.g_idx": groups,
    }
