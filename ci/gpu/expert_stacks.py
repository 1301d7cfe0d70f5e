"""Weights of experts for mixture_of_experts.py: exact ones for its check, large random ones for its times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from this_gpu import DEVICE, TYPES

from llmc.convert.bits import unpack_e2m1
from llmc.convert.kernels import expert_weights
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.runtime.plugins.mixture_of_experts import ExpertsShape, ExpertWeights

PLAIN, INT4, FP8 = ExpertWeights("plain"), ExpertWeights("int4", 128, 1, "bf16"), ExpertWeights("fp8", 128, 128, "fp32")
FP4 = ExpertWeights("fp4", 16, 1, "bf16")
FORMS = {"int4 g128": INT4, "nvfp4": FP4, "fp8 128x128": FP8, "bf16": PLAIN}


@dataclass(frozen=True)
class Stack:
    """stored: as the kernels take it; exact: float64 [out, in] of each expert, made where it is used."""

    stored: list[torch.Tensor]
    experts: Sequence[QuantizedWeight | torch.Tensor]

    def exact(self, expert: int) -> torch.Tensor:
        weight = self.experts[expert]
        return weight.double() if isinstance(weight, torch.Tensor) else weight.dequantize(torch.float64)


def known(form: ExpertWeights, experts: int, out: int, columns: int, generator: torch.Generator) -> Stack:
    """Weights whose product with normal inputs is about as large as those."""
    if form == PLAIN:
        plain = torch.randn(experts, out, columns, device=DEVICE, generator=generator) / columns**0.5
        plain = plain.bfloat16()
        return Stack([plain], plain)
    made = [_quantized(form, out, columns, generator) for _ in range(experts)]
    if (like := expert_weights.stored_as(made[0].kind, columns, made[0].scales.dtype)) != form:
        raise AssertionError(f"stored as {like}, not {form}")
    words = torch.stack([expert_weights.words(each, form) for each in made])
    return Stack([words, torch.stack([expert_weights.scales(each, form) for each in made])], made)


def _quantized(form: ExpertWeights, out: int, columns: int, generator: torch.Generator) -> QuantizedWeight:
    scales = torch.rand(-(-out // form.rows), -(-columns // form.group), device=DEVICE, generator=generator)
    if form.form == "int4":
        codes = torch.randint(-8, 8, (out, columns), dtype=torch.int8, device=DEVICE, generator=generator)
        return QuantizedWeight(codes, (scales / 4 / columns**0.5).bfloat16(), (1, form.group), "int4")
    if form.form == "fp4":
        pairs = torch.randint(0, 256, (out, columns // 2), device=DEVICE, generator=generator).to(torch.uint8)
        exact = (scales / 2 / columns**0.5).bfloat16()
        return QuantizedWeight(unpack_e2m1(pairs), exact, (1, form.group), "float4_e2m1fn")
    numbers = 8 * torch.randn(out, columns, device=DEVICE, generator=generator)
    codes = numbers.to(torch.float8_e4m3fn)
    return QuantizedWeight(codes, scales / 8 / columns**0.5, (form.rows, form.group), "float8_e4m3fn")


def random(shape: ExpertsShape, generator: torch.Generator) -> list[torch.Tensor]:
    """gate, up and down in the kernels' layout, with scales: every code is as likely; numbers stay finite."""
    (h, i), found = (shape.hidden, shape.inner), list[torch.Tensor]()
    for form, out, columns in ((shape.gate_up, i, h), (shape.gate_up, i, h), (shape.down, h, i)):
        for told in form.inputs(shape.experts, out, columns, shape.dtype):
            size, dtype = [d or 0 for d in told.shape], TYPES[told.type]
            if told.type == "i32":
                words = torch.randint(-(2**31), 2**31, size, dtype=dtype, device=DEVICE, generator=generator)
                found.append(words)
            else:
                spread = 0.1 / columns**0.5 if form.form == "fp8" else 1 / columns**0.5
                found.append(torch.empty(size, dtype=dtype, device=DEVICE).uniform_(0, spread, generator=generator))
    return found


def expert_bytes(shape: ExpertsShape) -> int:
    """Of one expert's gate, up and down with their scales."""
    h, i = shape.hidden, shape.inner
    stored = [(shape.gate_up, i, h), (shape.gate_up, i, h), (shape.down, h, i)]
    inputs = [each for form, out, columns in stored for each in form.inputs(1, out, columns, shape.dtype)]
    return sum(math.prod(d or 0 for d in each.shape) * TYPES[each.type].itemsize for each in inputs)


def flops(shape: ExpertsShape, tokens: int) -> int:
    """Of the three products of every choice."""
    return 2 * 3 * tokens * shape.top_k * shape.hidden * shape.inner
