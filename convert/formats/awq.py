"""AWQ as AutoAWQ stores it for its GEMM kernels: 4-bit integers with zero points, packed along the outputs.

`qweight` int32 [in, out / 8] holds unsigned codes, `qzeros` [groups, out / 8] their zeros, `scales` float16
[groups, out]. The eight numbers of a word are not in order: its lowest four bits belong to output 0, the next to 2,
then 4, 6, 1, 3, 5 and 7.
Source: `pack_intweight` and `WQLinear_GEMM.from_linear` in awq/modules/linear/gemm.py of AutoAWQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llmc.convert.fields import Fields
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.layout import Source
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec
from llmc.errors import InputError

_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)  # by the place in a word


@dataclass(frozen=True)
class AWQ(Format):
    name = "awq"
    part_names = frozenset({"qweight", "qzeros", "scales"})
    key = qweight_part = "qweight"
    scales_part = "scales"
    row_major = False

    def matches(self, module: str) -> bool:
        return True

    def shape(self, parts: Parts) -> tuple[int, int]:
        codes = parts["qweight"]
        where = f"{codes.file}: {codes.name}"
        if missing := sorted({"qzeros", "scales"} - parts.keys()):
            raise InputError(f"{where} has no {missing[0]} beside it; the checkpoint is incomplete")
        if codes.dtype != "I32" or len(codes.shape) != 2 or parts["scales"].dtype not in ("F16", "BF16", "F32"):
            raise InputError(f"{where} is {codes.dtype}, its scales {parts['scales'].dtype}; must be I32 and floats")
        columns, rows = codes.shape[0], codes.shape[1] * 8
        groups = parts["scales"].shape[0] if parts["scales"].shape else 0
        for name, shape in {"scales": (groups, rows), "qzeros": (groups, rows // 8)}.items():
            if parts[name].shape != shape or not groups or columns % groups:
                raise InputError(f"{where}: {name} {list(parts[name].shape)} does not fit a [{rows}, {columns}] weight")
        return rows, columns

    def kind(self, parts: Parts) -> QuantSpec:
        return QuantSpec("int4", (1, self.shape(parts)[1] // parts["scales"].shape[0]), True, False, None)

    def decode(self, parts: Parts) -> QuantizedWeight:
        codes, zeros = (_in_order(parts[name].read()) for name in ("qweight", "qzeros"))
        scales = parts["scales"].read().T.contiguous()
        return QuantizedWeight(codes, scales, self.kind(parts).block, "int4", zeros)

    @classmethod
    def takes(cls, spec: QuantSpec) -> bool:
        return False

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        raise NotImplementedError("AWQ is read, and written as compressed-tensors")

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        raise NotImplementedError("AWQ is read, and written as compressed-tensors")


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """int32 [n, out / 8] → int8 [out, n], codes less 8."""
    places = torch.argsort(torch.tensor(_OUTPUTS))
    numbers = words[..., None] >> 4 * places & 15
    return (numbers - 8).to(torch.int8).flatten(-2).T.contiguous()


class AutoAWQ(Source):
    """`modules_to_not_convert` adds nothing: what is stored so has codes."""

    name = method = "awq"
    formats = (AWQ,)

    def read(self, quantization: Fields) -> tuple[Format, ...]:
        quantization.one_of("bits", 4)
        version = str(quantization.config.get("version") or "gemm")
        if version.lower() != "gemm":
            raise InputError(
                f"`{quantization.prefix}version` {version!r} cannot be read, only gemm; "
                "use the checkpoint that it was made from"
            )
        return (AWQ(),)


SOURCE = AutoAWQ()
