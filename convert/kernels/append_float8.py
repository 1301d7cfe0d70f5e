"""`llmc.AppendFloat8`: entries become E4M3 codes at their place in the cache."""

from __future__ import annotations

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.runtime.plugins.append_float8 import EntryShape
from llmc.runtime.plugins.operation import FixedLaunch


@triton.jit
def _append(
    cache: tl.tensor, entries: tl.tensor, cache_position: tl.tensor, cache_scale: tl.tensor,
    tokens: tl.tensor, capacity: tl.tensor, CHANNELS: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: S, B. cache [B, T, C] codes, entries [B, S, C]. By hand, since GPUs before sm_89 cannot convert."""
    token, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, TILE)
    inside = channel < CHANNELS
    number = tl.load(entries + (batch * tokens + token) * CHANNELS + channel, mask=inside, other=0.0)
    number = number.to(tl.float32) / cache_scale
    size = tl.minimum(tl.abs(number), 448.0)
    # Normal numbers: exponents are 120 too large, 20 bits of the mantissa too many. Half a unit less one, and one more
    # if the last bit kept is odd, carry where rounding goes up. Smaller ones count in 2^-9, the last bit of 2^14.
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0.015625, small, normal) | (number.to(tl.int32, bitcast=True) >> 24 & 0x80)
    code = tl.where(number != number, 0x7F, code)
    place = tl.load(cache_position + batch) + token
    # Positions are garbage where a compiler tries the plugin on any numbers.
    written = inside & (place >= 0) & (place < capacity)
    tl.store(cache + (batch * capacity + place) * CHANNELS + channel, code.to(tl.uint8), mask=written)


def sources(shape: EntryShape, sm: int) -> dict[str, KernelSource]:
    types = {"cache": "*u8", "entries": f"*{shape.dtype}", "cache_position": "*i64", "cache_scale": "fp32"}
    types |= {"tokens": "i32", "capacity": "i32"}
    return {"append": KernelSource(_append, types, append_constants(shape.channels))}


def layout_for(shape: EntryShape, sm: int) -> FixedLaunch:
    """A program takes one entry."""
    return FixedLaunch()


def append_constants(channels: int) -> dict[str, int]:
    return {"CHANNELS": channels, "TILE": triton.next_power_of_2(channels)}
