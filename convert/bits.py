"""Small numbers packed densely, integers as compressed-tensors and ONNX Runtime lay them out, and 4-bit floats.

A row of integers is one stream of bits: code i takes bits [i b, i b + b), lowest bit first, and the row ends at a whole
int32.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 [..., n] in [-2^(b-1), 2^(b-1)) → int32 [..., ceil(n b / 32)]; a code c is stored as c + 2^(b-1)."""
    n = codes.shape[-1]
    words = -(-n * bits // 32)
    unsigned = codes.short() + (1 << bits - 1)
    if bits == 8:
        packed = unsigned.to(torch.uint8)
    elif bits in (2, 4):
        per_byte = 8 // bits
        parts = functional.pad(unsigned, (0, -n % per_byte)).to(torch.uint8).unflatten(-1, (-1, per_byte))
        packed = parts[..., 0]
        for place in range(1, per_byte):
            packed = packed | parts[..., place] << place * bits
    else:  # eight codes are `bits` bytes
        eights = functional.pad(unsigned.long(), (0, -n % 8)).unflatten(-1, (-1, 8))
        numbers = (eights << bits * torch.arange(8, device=codes.device)).sum(-1, keepdim=True)
        packed = numbers.view(torch.uint8)[..., :bits].flatten(-2)
    packed = functional.pad(packed, (0, 4 * words - packed.shape[-1])) if packed.shape[-1] < 4 * words else packed
    whole = packed[..., : 4 * words].flatten()  # first, since an axis of one row has no stride that fits
    return whole.view(torch.int32).reshape(*codes.shape[:-1], words)


def unpack(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """The inverse of `pack` for rows of n codes: int8 [..., n]."""
    # A clone, since `contiguous` leaves the strides of axes of length one as they are.
    stored = packed.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    if bits == 8:
        codes = stored.short()
    elif bits in (2, 4):
        places = [stored >> place & (1 << bits) - 1 for place in range(0, 8, bits)]
        codes = torch.stack(places, dim=-1).flatten(-2).short()
    else:
        eights = functional.pad(stored, (0, -stored.shape[-1] % bits)).unflatten(-1, (-1, bits)).long()
        numbers = (eights << 8 * torch.arange(bits, device=packed.device)).sum(-1, keepdim=True)
        shifts = bits * torch.arange(8, device=packed.device)
        codes = (numbers >> shifts & (1 << bits) - 1).flatten(-2).short()
    return (codes[..., :n] - (1 << bits - 1)).to(torch.int8)


LARGEST_E2M1 = 6.0
# E2M1 by code, the sign on top. All of them are values of E4M3, too, zeros of both signs included.
_E2M1 = torch.tensor([sign * size for sign in (1, -1) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)])
_E4M3_BYTES = _E2M1.to(torch.float8_e4m3fn).view(torch.uint8)
_NIBBLES = torch.zeros(256, dtype=torch.uint8).scatter_(0, _E4M3_BYTES.long(), torch.arange(16, dtype=torch.uint8))
_TO_INTEGER = 1.5 * 2.0**23  # added to a float: what it then has no bits for is rounded, half to even


def round_to_e2m1_(x: torch.Tensor) -> torch.Tensor:
    """Turn each number of float32 x into the nearest value of E2M1, in place.

    Ties go to the even code; what is larger than 6 becomes 6.
    """
    x.clamp_(-LARGEST_E2M1, LARGEST_E2M1)
    # The power of two below each, whose half is how far codes lie apart there; below 1 they do as above it.
    shift = (x.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(1.0, 4.0).mul_(_TO_INTEGER / 2)
    return x.add_(shift).sub_(shift)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n], two codes of E2M1 a byte, the lower four bits first → their values, float8_e4m3fn [..., 2 n].

    Source: OCP Microscaling Formats (MX) Specification 1.0, section 5.3.3.
    """
    table = _E4M3_BYTES.to(packed.device)
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    return table[codes.int()].view(torch.float8_e4m3fn)


def pack_e2m1(values: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn [..., 2 n], all of them values of E2M1 → uint8 [..., n]."""
    codes = e2m1_codes(values)
    return codes[..., 0::2] | codes[..., 1::2] << 4


def e2m1_codes(values: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn, all of them values of E2M1 → their codes of 4 bits, uint8."""
    return _NIBBLES.to(values.device)[values.view(torch.uint8).int()]
