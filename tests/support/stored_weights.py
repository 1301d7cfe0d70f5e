"""Random matrices in the kinds of codes that kernels read."""

from __future__ import annotations

import torch

from llmc.convert.bits import unpack_e2m1
from llmc.convert.quantized_weight import QuantizedWeight


def stored(
    form: str, out: int, columns: int, generator: torch.Generator, scales: torch.dtype = torch.bfloat16
) -> QuantizedWeight:
    """form: "int4-", "fp4-" or "fp8-", and inputs that share a scale, or "block" (128 x 128), "channel" or "tensor"."""
    kind, _, shared = form.partition("-")
    blocks = {"block": (128, 128), "channel": (1, columns), "tensor": (out, columns)}
    rows, group = blocks[shared] if shared in blocks else (1, int(shared))
    count = -(-out // rows), -(-columns // group)
    if kind == "int4":
        codes = torch.randint(-8, 8, (out, columns), generator=generator, dtype=torch.int8)
        return QuantizedWeight(codes, (0.05 * torch.rand(count, generator=generator)).to(scales), (rows, group), "int4")
    if kind == "fp4":
        codes = unpack_e2m1(torch.randint(0, 256, (out, columns // 2), generator=generator).to(torch.uint8))
        sizes = (0.1 * torch.rand(count, generator=generator)).to(torch.float8_e4m3fn).float() / 16
        return QuantizedWeight(codes, sizes, (rows, group), "float4_e2m1fn")
    codes = torch.randn(out, columns, generator=generator).to(torch.float8_e4m3fn)
    return QuantizedWeight(codes, 0.1 * torch.rand(count, generator=generator), (rows, group), "float8_e4m3fn")
