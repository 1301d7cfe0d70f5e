"""Codes and scales of ours as llama.cpp's blocks of 32 weights, bit for bit.

A block has one or two float16 in front: the scale d, and where codes have a zero the smallest value m. Ours become

    Q4_0  (c - 8) d     codes of 2 to 4 bits, c from 0 to 15        Q4_1  c d + m    with zero points
    Q5_0  (c - 16) d    of 5 bits, the fifth bits in a word         Q5_1  c d + m
    Q8_0  c d           of 6 and 8 bits                             MXFP4  E2M1 times a power of two

where d may be negative. Larger groups repeat their scale. What float16 does not hold as it is, is rounded, and counted.
Source: the structs of ggml-common.h, and the package gguf, whose decoder tests hold these against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from llmc.convert.bits import e2m1_codes
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec, bits_of, is_integer
from llmc.errors import InputError

SIZE = 32  # weights of a block
_OFFSETS = {Type.Q4_0: 8, Type.Q4_1: 8, Type.Q5_0: 16, Type.Q5_1: 16}
_SYMMETRIC = (Type.Q4_0, Type.Q5_0, Type.Q8_0)  # each holds the codes of those before it
_WITH_ZEROS = (Type.Q4_1, Type.Q5_1)
_EXPONENT_BIAS = 127

Bytes = NDArray[np.uint8]


def exact_type(spec: QuantSpec, columns: int) -> Type | None:
    """Return the type that has a code for every code of such weights [out, columns]; None: there is none."""
    rows, group = spec.block[0] or 0, spec.block[1] or columns
    if rows != 1 or group % SIZE or columns % SIZE or spec.g_idx:
        return None
    if spec.code_type == "float4_e2m1fn":
        return Type.MXFP4 if group == SIZE else None
    if not is_integer(spec.code_type):
        return None
    bits = bits_of(spec.code_type)
    if spec.zero_points:
        return Type.Q4_1 if bits <= 4 else Type.Q5_1 if bits == 5 else None
    return Type.Q4_0 if bits <= 4 else Type.Q5_0 if bits == 5 else Type.Q8_0


def common_type(types: set[Type | None]) -> Type | None:
    """Return the smallest type that holds the codes of all of these, for experts that lie in one stack."""
    for order in (_SYMMETRIC, _WITH_ZEROS, (Type.MXFP4,)):
        if types <= {*order}:
            return max((each for each in types if each is not None), key=order.index)
    return None


@dataclass(frozen=True)
class Encoded:
    """blocks: uint8 [out, bytes of a row]; scales: how many there are, and `inexact`, how many float16 rounds."""

    blocks: Bytes
    scales: int
    inexact: int


def encode(weight: QuantizedWeight, kind: Type, name: str = "a weight") -> Encoded:
    """Return the blocks of a weight [out, in] in a type that `exact_type` or `common_type` named for it.

    Raises:
        InputError: for scales that float16 has no number for
    """
    rows, columns = weight.shape
    count = columns // SIZE
    if kind == Type.MXFP4:
        codes = e2m1_codes(weight.qweight).numpy().reshape(rows, count, SIZE)
        exponents = np.log2(weight.scales.float().numpy()) + _EXPONENT_BIAS
        scales = np.clip(np.round(exponents), 0, 254).astype(np.uint8)[..., None]
        wrong = int((scales[..., 0] != exponents).sum())
        return Encoded(np.concatenate([scales, _nibbles(codes)], -1).reshape(rows, -1), scales.size, wrong)
    scales = weight.scales.float()
    heads = [scales]
    if weight.zero_points is not None:  # the smallest value: that of the lowest code of the type
        heads.append((-_OFFSETS[kind] - weight.zero_points.float()) * scales)
    narrow = [each.half() for each in heads]
    if not all(torch.isfinite(each).all() for each in narrow):
        raise InputError(
            f"{name}: its scales are beyond 65504, which GGUF's blocks cannot hold; leave out the target gguf"
        )
    inexact = torch.stack([stored.float() != wide for stored, wide in zip(narrow, heads, strict=True)]).any(0)
    front = [each.numpy().repeat(weight.block[1] // SIZE, -1)[..., None].view(np.uint8) for each in narrow]
    codes = weight.qweight.numpy().reshape(rows, count, SIZE)
    if kind == Type.Q8_0:
        parts = [codes.view(np.uint8)]
    else:
        unsigned = (codes + np.int8(_OFFSETS[kind])).view(np.uint8)
        parts = [_nibbles(unsigned & np.uint8(15))]
        if kind in (Type.Q5_0, Type.Q5_1):
            parts.insert(0, np.packbits(unsigned >> 4, -1, bitorder="little"))
    return Encoded(np.concatenate([*front, *parts], -1).reshape(rows, -1), scales.numel(), int(inexact.sum()))


def _nibbles(codes: Bytes) -> Bytes:
    """[…, 32] → […, 16]: the first half of a block in the lower four bits, the second half above it."""
    return codes[..., : SIZE // 2] | codes[..., SIZE // 2 :] << np.uint8(4)
