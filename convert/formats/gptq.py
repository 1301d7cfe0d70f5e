"""GPTQ's own layout (AutoGPTQ, GPTQModel), versions 1 and 2: integers of 2, 3, 4 or 8 bits, packed along the inputs.

`qweight` int32 [in bits / 32, out] holds unsigned codes, `qzeros` [groups, out bits / 32] their zeros, `scales`
[groups, out], `g_idx` [in] the group of each input channel. Version 1 stores each zero less one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from llmc.convert.bits import pack, unpack
from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.layout import DEFAULT_LAYOUT, Layout, NamedSpec
from llmc.convert.formats.patterns import patterns
from llmc.convert.formats.targets import MAX_PATTERNS, pattern_of
from llmc.convert.quantized_weight import CodeType, QuantizedWeight, QuantSpec, bits_of, is_integer
from llmc.errors import InputError
from llmc.patterns import Budget, Pattern

# Relative squared error of a weight that float16 scales may add: a thousandth of what 4 bits do, a third of 8 bits.
_LOST = 1e-5
BITS = (4, 8, 3, 2)


@dataclass(frozen=True)
class GPTQ(Format):
    """Its scales are float16, from 6e-8 to 65504, with all bits only from 6e-5 on. A model is the same when its norms
    are larger and the weights behind them smaller, but these scales are not.
    """

    name = "gptq"
    part_names = frozenset({"qweight", "qzeros", "scales", "g_idx"})
    cuts = dict.fromkeys(sorted(part_names), "refused")  # they run along the inputs
    key = qweight_part = "qweight"
    scales_part = "scales"
    row_major = False
    narrows = True

    bits: int
    version: int
    pattern: Pattern | None = None  # that the beginning of a module's name matches

    @classmethod
    def from_config(cls, quantization: Fields) -> tuple[GPTQ, ...]:
        """The formats of the modules that `dynamic` makes exceptions of (`+:` and a pattern), and of all others."""
        layout = quantization.one_of("checkpoint_format", "gptq", "gptq_v2", default="gptq")
        version, bits = 2 if layout == "gptq_v2" else 1, quantization.one_of("bits", *BITS)
        dynamic, exceptions = quantization.mapping("dynamic"), []
        if len(dynamic.config) > MAX_PATTERNS:
            raise InputError(f"`{dynamic.prefix}` has {len(dynamic.config):,} patterns, of at most {MAX_PATTERNS:,}")
        budget = Budget()
        for text in dynamic.config:
            pattern = pattern_of(f"{dynamic.prefix}{text[:80]}", text.removeprefix("+:").removeprefix("-:"), budget)
            if not text.startswith("-:"):  # modules that are left as they are
                its_bits = dynamic.mapping(text).one_of("bits", *BITS, default=bits)
                exceptions.append(cls(its_bits, version, pattern))
        return (*exceptions, cls(bits, version))

    def matches(self, module: str) -> bool:
        return self.pattern is None or self.pattern.match(module)

    def shape(self, parts: Parts) -> tuple[int, int]:
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

    def kind(self, parts: Parts) -> QuantSpec:
        """Zeros and `g_idx` are always stored, so that only their values tell whether there are any."""
        zeros, groups, size = self._zeros_and_groups(parts)
        return QuantSpec(self._code_type, (1, size), zeros is not None, groups is not None, None)

    def decode(self, parts: Parts) -> QuantizedWeight:
        zeros, groups, size = self._zeros_and_groups(parts)
        codes = unpack(parts["qweight"].read().T, self.bits, self.shape(parts)[1])
        scales = parts["scales"].read().T.contiguous()
        return QuantizedWeight(codes, scales, (1, size), self._code_type, zeros, groups)

    def _zeros_and_groups(self, parts: Parts) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
        """None where all are zero, and where channels lie in order; and the size of a group."""
        rows, columns = self.shape(parts)
        count, limit = parts["scales"].shape[0], 1 << self.bits - 1
        size = columns // count
        zeros = unpack(parts["qzeros"].read(), self.bits, rows).T.short()
        if self.version == 1:
            zeros = torch.where(zeros == limit - 1, -limit, zeros + 1)  # one less, in as many bits
        groups = parts["g_idx"].read().int()
        if not ((groups >= 0) & (groups < count)).all():
            raise InputError(f"{parts['g_idx'].file}: {parts['g_idx'].name} names groups that have no scale")
        plain = torch.equal(groups, torch.arange(columns, dtype=torch.int32) // size)
        return zeros.to(torch.int8).contiguous() if zeros.any() else None, None if plain else groups, size

    @property
    def _code_type(self) -> CodeType:
        return cast(CodeType, f"int{self.bits}")

    @classmethod
    def takes(cls, spec: QuantSpec) -> bool:
        return is_integer(spec.code_type) and bits_of(spec.code_type) in BITS

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        """In version 2, whose zeros are what they are."""
        if not weight.scales.is_meta:
            exact, narrowed = weight.dequantize(), replace(weight, scales=weight.scales.half()).dequantize()
            _require_small(module, (narrowed - exact).square().sum(), exact.square().sum())
        bits, zeros, groups = weight.bits, weight.zero_points, weight.g_idx
        if zeros is None:
            zeros = torch.zeros_like(weight.scales, dtype=torch.int8)
        if groups is None:
            groups = torch.arange(weight.shape[1], dtype=torch.int32) // weight.block[1]
        return {
            f"{module}.qweight": pack(weight.qweight, bits).T.contiguous(),
            f"{module}.qzeros": pack(zeros.T.contiguous(), bits),
            f"{module}.scales": weight.scales.T.to(torch.float16).contiguous(),
            f"{module}.g_idx": groups,
        }

    @classmethod
    def require_range(cls, module: str, weight: torch.Tensor, spec: QuantSpec) -> int:
        """By the largest weight of each group: its scale is that, at most half of it shared off, by the steps."""
        groups = weight.unflatten(-1, (-1, spec.block[1] or weight.shape[1]))
        highest = (1 << bits_of(spec.code_type) - 1) - 1
        largest, energy = groups.abs().amax(-1) / highest, groups.double().square().sum(-1)
        ends = torch.stack([largest, largest / 2]).double()
        lost = ((ends.half() - ends) / ends.clamp(min=torch.finfo(torch.float64).tiny)).square().amax(0)
        _require_small(module, (lost * energy).sum(), energy.sum())
        return int(((lost > _LOST) & (energy > 0)).sum())

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        return {
            "bits": bits_of(spec.code_type),
            "group_size": spec.block[1] or -1,
            "sym": not spec.zero_points,
            "desc_act": spec.g_idx,
        }


def _require_small(module: str, lost: torch.Tensor, whole: torch.Tensor) -> None:
    if not lost <= _LOST * whole:  # NaN, too: of infinity times zero
        raise InputError(
            f"{module}: the scales of these weights do not fit into the float16 of layout gptq; "
            f"use layout {DEFAULT_LAYOUT}"
        )


class GPTQLayout(Layout):
    """`dynamic` of its config names what is quantized in another way than most, and what is not."""

    name = method = "gptq"
    formats = (GPTQ,)
    stores = "integers of 2, 3, 4 and 8 bits, -asym and -actorder, too"
    readers = "GPTQModel loads them"

    def read(self, quantization: Fields) -> tuple[Format, ...]:
        return GPTQ.from_config(quantization)

    def config(self, schemes: Mapping[str, NamedSpec], modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        specs = {scheme.name: scheme.spec for scheme in schemes.values()}
        usual = Counter(scheme.name for scheme in schemes.values()).most_common(1)[0][0]
        dynamic: dict[str, Any] = {}
        for other in sorted({*specs} - {usual}):
            for pattern in patterns(module for module, given in schemes.items() if given.name == other):
                dynamic[f"+:{pattern}"] = GPTQ.config(specs[other])
        for pattern in patterns(module for module in modules if module not in schemes):
            dynamic[f"-:{pattern}"] = {}
        config = {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "pack_dtype": "int32", "lm_head": False}
        return config | GPTQ.config(specs[usual]) | ({"dynamic": dynamic} if dynamic else {})


LAYOUT = GPTQLayout()
