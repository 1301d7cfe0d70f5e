"""Weights of experts as the kernels read them.

The input dimension is cut into blocks of 16 words: 128 inputs as int4 or FP4, 64 as FP8. The codes of a block fill its
words across, not along: code 16 J + w of a block is part J (4 or 8 bits, the lowest first) of word w. So part J of all
words is 16 inputs in a row, the depth of a tensor core's product: a shift and a mask make the loaded words the left
side of a product with inputs that lie side by side, and no code has to move to another register. In the order of the
checkpoint (code 8 w + J) it would be every eighth input. Groups of 16 inputs or more share a scale: whole parts do.

Scales turn round, [groups, out], so that those of one step of the kernel lie side by side.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from llmc.convert.bits import e2m1_codes
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec
from llmc.errors import InputError
from llmc.runtime.plugins.mixture_of_experts import CODES, WORDS, ExpertWeights

_FORMS = {"int2": "int4", "int3": "int4", "int4": "int4", "float4_e2m1fn": "fp4", "float8_e4m3fn": "fp8"}
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
PLAIN = ExpertWeights("plain")


def stored_as(kind: QuantSpec, columns: int, scales: torch.dtype) -> ExpertWeights | None:
    """How the kernels read weights of that kind, with so many inputs and scales of that type; None: they do not.

    Raises:
        InputError: They would, but for the type of the scales.
    """
    form, (rows, group) = _FORMS.get(kind.code_type), kind.block
    if form is None or kind.zero_points or kind.g_idx:
        return None
    step = WORDS * CODES[form]
    if group >= columns:
        group = -(-columns // step) * step
    if group % WORDS or (step % group and group % step):
        return None
    if scales not in _TYPES and form != "fp4":
        known, name = ", ".join(map(_named, _TYPES)), _named(scales)
        raise InputError(f"scales in {name}: the plugins' kernels read {known}; say `plugins: false`")
    # Scales of FP4 are powers of two, or four bits and a power of two, which bfloat16 holds; or, of NVFP4 that is made
    # elsewhere, four bits and a factor, rounded as weights of bfloat16 are.
    return ExpertWeights(form, group, rows, "bf16" if form == "fp4" else _TYPES[scales])


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def words(weight: QuantizedWeight, like: ExpertWeights) -> torch.Tensor:
    """int32 [out, 16 blocks]"""
    if like.form == "fp8":
        return _across(weight.qweight.view(torch.uint8), 0, CODES["fp8"]).view(torch.int32)
    if like.form == "fp4":
        codes = _across(e2m1_codes(weight.qweight), 0, CODES["fp4"])
    else:
        codes = _across((weight.qweight + 8).to(torch.uint8), 8, CODES["int4"])
    return (codes[..., 0::2] | codes[..., 1::2] << 4).view(torch.int32)


def scales(weight: QuantizedWeight, like: ExpertWeights) -> torch.Tensor:
    """[groups, ceil(out / rows)], as many groups as whole blocks have."""
    step = WORDS * CODES[like.form]
    groups = -(-(-(-weight.shape[1] // step) * step) // like.group)
    found = weight.scales.bfloat16() if like.form == "fp4" else weight.scales
    return functional.pad(found, (0, groups - found.shape[1])).mT.contiguous()


def _across(codes: torch.Tensor, zero: int, parts: int) -> torch.Tensor:
    """uint8 [out, in] → [out, in rounded up to blocks], the parts of each word side by side."""
    padded = functional.pad(codes, (0, -codes.shape[-1] % (parts * WORDS)), value=zero)
    return padded.unflatten(-1, (-1, parts, WORDS)).mT.flatten(-3).contiguous()
