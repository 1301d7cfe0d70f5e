"""Small integers packed densely, as compressed-tensors and ONNX Runtime lay them out.

A row is one stream of bits: code i takes bits [i b, i b + b), lowest bit first, and the row ends at a whole int32.
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
