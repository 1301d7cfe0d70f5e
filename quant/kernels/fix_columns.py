"""GPTQ's column loop as one kernel: no output channel looks at another, so each tile of them runs alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 128  # of a block, at most: registers hold as many errors of each channel
CHANNELS = 32  # of a tile
WARPS = 4  # fewer would spill registers on sm_80


@triton.jit
def _fix_block(
    target: tl.tensor, inverse: tl.tensor, scales: tl.tensor, zeros: tl.tensor, steps: tl.tensor, lost: tl.tensor,
    target_expert: tl.tensor, target_column: tl.tensor,
    inverse_expert: tl.tensor, inverse_row: tl.tensor, inverse_column: tl.tensor,
    scales_expert: tl.tensor, scales_column: tl.tensor, zeros_expert: tl.tensor, zeros_column: tl.tensor,
    steps_expert: tl.tensor, steps_column: tl.tensor, lost_expert: tl.tensor, lost_column: tl.tensor,
    columns: tl.tensor, channels: tl.tensor, lowest: tl.tensor, highest: tl.tensor,
    FLOAT_BITS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    expert = tl.program_id(1).to(tl.int64)  # offsets pass 2^31
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    row = tl.arange(0, COLUMNS)
    target += expert * target_expert + channel
    scales += expert * scales_expert + channel
    steps += expert * steps_expert + channel
    lost += expert * lost_expert + channel
    if zeros is not None:
        zeros += expert * zeros_expert + channel
    diagonal = inverse + expert * inverse_expert
    above = diagonal + row * inverse_row
    errors = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    for column in range(columns):
        # The torch loop takes each error off all later columns. Here a column collects those of all earlier ones: so no
        # row has to be picked out of registers by number, which they do not allow.
        factor = tl.load(above, mask=row < column, other=0.0)
        weight = tl.load(target, mask=inside, other=0.0) - tl.sum(factor[:, None] * errors, 0)
        scale = tl.load(scales, mask=inside, other=1.0)
        low, high = lowest, highest
        if zeros is not None:
            zero = tl.load(zeros, mask=inside, other=0.0)
            low, high = lowest - zero, highest - zero
            zeros += zeros_column
        ratio = weight * tl.div_rn(1.0, scale)
        step = _round(tl.where(ratio < low, low, tl.where(ratio > high, high, ratio)), FLOAT_BITS)  # NaN stays NaN
        error = (weight - step * scale) * tl.div_rn(1.0, tl.load(diagonal))
        errors = tl.where(row[:, None] == column, error[None, :], errors)
        tl.store(steps, step, mask=inside)
        tl.store(lost, error, mask=inside)
        # Pointers step along: multiplying them out of `column` doubles the loop's integer instructions.
        diagonal, above = diagonal + inverse_row + inverse_column, above + inverse_column
        target, scales = target + target_column, scales + scales_column
        steps, lost = steps + steps_column, lost + lost_column


@triton.jit
def _round(x: tl.tensor, FLOAT_BITS: tl.constexpr) -> tl.tensor:
    """To the nearest integer, E4M3 or E2M1 number, half to even, keeping the sign of zero but for E2M1; x lies in the
    format's range.
    """
    bits = x.to(tl.int32, bitcast=True)
    unit = tl.full(x.shape, 1.0, tl.float32)
    if FLOAT_BITS == 8:  # three bits of mantissa; by hand, since GPUs before sm_89 cannot convert
        unit = tl.maximum((bits & 0x7F800000).to(tl.float32, bitcast=True), 2.0**-6) * 0.125
    if FLOAT_BITS == 4:  # one, and no exponent below that of 1
        unit = tl.maximum((bits & 0x7F800000).to(tl.float32, bitcast=True), 1.0) * 0.5
    # From 2^23 units on floats lie one unit apart, so the addition rounds; compilers do not reorder it.
    shift = unit * 8388608.0
    rounded = (tl.abs(x) + shift) - shift
    if FLOAT_BITS == 4:
        return tl.where(x < 0, -rounded, rounded) + 0.0
    return (rounded.to(tl.int32, bitcast=True) | (bits & -0x80000000)).to(tl.float32, bitcast=True)


def fix_block(
    target: torch.Tensor,
    inverse: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    steps: torch.Tensor,
    lost: torch.Tensor,
    lowest: float,
    highest: float,
    float_bits: int = 0,
) -> None:
    """Rounds up to 128 columns one by one; writes their steps and what each loses, not yet moved on beyond the block.

    Args:
        target, scales, zeros, steps, lost: [E, n, out] float32, contiguous along out; target is only read
        inverse: [E, n, n] float32 in any layout, the block on the upper factor's diagonal
        lowest, highest: of the codes, numbers of E4M3 or E2M1 if float_bits is 8 or 4, else integers
    """
    experts, columns, channels = target.shape
    tensors = (target, scales, target if zeros is None else zeros, steps, lost)
    if columns > COLUMNS or any(x.stride(2) != 1 < channels for x in tensors):
        raise ValueError(f"at most {COLUMNS} columns, contiguous along out; not {columns} with {target.stride()}")
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    with torch.cuda.device_of(target):
        _fix_block[triton.cdiv(channels, CHANNELS), experts](
            target, inverse, scales, zeros, steps, lost, *strides[:2], *inverse.stride(), *strides[2:],
            columns, channels, float(lowest), float(highest),
            FLOAT_BITS=float_bits, COLUMNS=COLUMNS, CHANNELS=CHANNELS, num_warps=WARPS,
        )  # fmt: skip
