"""`llmc.LatentAttention` as kernels: MLA in absorbed form (DeepSeek-V2, section 2.1.2) over the latent cache.

All heads attend to the same cache entries, so the rows of a tile are heads of one token, then those of the next: with
many heads a tile reads no entry that only a later token sees. The softmax is computed on the way (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018); where there are few tiles, several programs take a part
of the entries each, and a second kernel joins their results ("Flash-Decoding", Dao and others, 2023).

Tensors are contiguous: query [B, Hq, S, R + P], cache [B, 1, T, R + P], output [B, Hq, S, R]. An FP8 cache is passed as
its codes, and its scale as `cache_scale`; what the cache holds is code * scale. For other caches that is 1.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.latent_attention_tiles import tiles_for
from llmc.runtime.plugins.latent_attention import MOST_SPLITS, LatentLaunch, LatentShape

JOINED_CHANNELS = 128  # of a program of the second kernel, so that few rows make enough programs
JOINED_SPLITS = 16  # that it reads the values of together


@triton.jit
def _attend(
    query: tl.tensor, cache: tl.tensor, cache_position: tl.tensor, mixed: tl.tensor, logsum: tl.tensor,
    scale: tl.tensor, cache_scale: tl.tensor, tokens: tl.tensor, capacity: tl.tensor,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, RANK_TILE: tl.constexpr, ROPE_TILE: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, PARTIAL: tl.constexpr, FLOAT8: tl.constexpr, CONVERTS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: row tiles, splits, B. One program takes a tile of the S * Hq rows and one of the splits of their entries.

    PARTIAL: mixed is [B, splits, S * Hq, R] float32, each split's own average, and logsum [B, splits, S * Hq] float32
    the base-2 logarithm of its sum of weights; of a split without entries only logsum is written, as -inf.
    Otherwise there is one split, mixed is the output and logsum is None.
    """
    CHANNELS: tl.constexpr = RANK + ROPE
    batch = tl.program_id(2).to(tl.int64)  # offsets pass 2^31; inside of one sequence they do not
    rows = tokens * HEADS
    # The last tokens see most entries: begun first, they do not keep the GPU waiting at the end.
    end_row = (tl.num_programs(0) - tl.program_id(0)) * ROWS
    row = end_row - ROWS + tl.arange(0, ROWS)
    inside = row < rows
    token, head = row // HEADS, row % HEADS

    position = tl.load(cache_position + batch).to(tl.int32)
    last_token = (tl.minimum(end_row, rows) - 1) // HEADS
    visible = tl.minimum(position + last_token + 1, capacity)
    share = tl.cdiv(tl.cdiv(visible, ENTRIES), tl.num_programs(1)) * ENTRIES
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, visible)
    end_of_row = tl.minimum(position + token + 1, end)

    rank, rope = tl.arange(0, RANK_TILE), RANK + tl.arange(0, ROPE_TILE)
    in_rank, in_rope = rank < RANK, rope < CHANNELS
    query += batch * rows * CHANNELS + (head * tokens + token)[:, None] * CHANNELS
    wanted = (inside & (begin < end))[:, None]
    query_latent = tl.load(query + rank, mask=wanted & in_rank, other=0.0)
    query_rope = tl.load(query + rope, mask=wanted & in_rope, other=0.0)

    cache += batch * capacity * CHANNELS
    to_exponent = scale * cache_scale * 1.4426950408889634  # powers of 2 are cheaper than those of e
    largest = tl.full((ROWS,), -1e30, tl.float32)  # finite, so that a row that sees nothing yet makes no inf - inf
    total = tl.zeros((ROWS,), tl.float32)
    value = tl.zeros((ROWS, RANK_TILE), tl.float32)
    for first in range(begin, end, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        written = (entry < end)[:, None]  # what lies beyond may be NaN, which a weight of 0 would not hide
        latent = tl.load(cache + entry[:, None] * CHANNELS + rank, mask=written & in_rank, other=0.0)
        rotated = tl.load(cache + entry[:, None] * CHANNELS + rope, mask=written & in_rope, other=0.0)
        if FLOAT8:
            latent = _decode(latent, query_latent.dtype, CONVERTS)
            rotated = _decode(rotated, query_latent.dtype, CONVERTS)
        scores = tl.dot(query_rope, rotated.T, tl.dot(query_latent, latent.T))
        scores = tl.where(entry < end_of_row[:, None], scores * to_exponent, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        value = tl.dot(weights.to(latent.dtype), latent, value * shrink[:, None])
        largest = larger

    nothing = total == 0.0  # NaN is not nothing
    total = tl.where(nothing, 1.0, total)
    value = value * (cache_scale / total)[:, None]
    # Counted down: in the terms of above, the compiler would keep places in registers that the loop needs.
    row = end_row - (ROWS - tl.arange(0, ROWS))
    inside = row < rows
    if PARTIAL:
        place, sequence = row, batch * tl.num_programs(1) + tl.program_id(1)
        exponent = tl.where(nothing, float("-inf"), largest + tl.log2(total))
        tl.store(logsum + sequence * rows + row, exponent, mask=inside)
        inside &= ~nothing
    else:
        place, sequence = row % HEADS * tokens + row // HEADS, batch
    tl.store(
        mixed + sequence * rows * RANK + (place[:, None] * RANK + rank),
        value.to(mixed.dtype.element_ty),
        mask=inside[:, None] & in_rank,
    )


@triton.jit
def _decode(codes: tl.tensor, dtype: tl.constexpr, CONVERTS: tl.constexpr) -> tl.tensor:
    """E4M3 codes as numbers, exactly."""
    if CONVERTS:
        return codes.to(tl.float8e4nv, bitcast=True).to(dtype)
    # By hand, since GPUs before sm_89 cannot convert: moved to float16's place, exponents read as 8 less than they are,
    # those of the smallest numbers too. (The code of NaN becomes 480; a cache that saturates has none.)
    half = (((codes.to(tl.int16) << 8) >> 1) & -0x4080).to(tl.float16, bitcast=True)
    return (half * 256.0).to(dtype)


@triton.jit
def _join(
    mixed: tl.tensor, logsum: tl.tensor, output: tl.tensor, tokens: tl.tensor, splits: tl.tensor,
    HEADS: tl.constexpr, RANK: tl.constexpr,
    MOST_SPLITS: tl.constexpr, SPLITS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: S * Hq, tiles of R, B. Averages what the splits found by their sums of weights; output [B, Hq, S, R]."""
    row, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    rows = tokens * HEADS
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < RANK
    first_place = batch * splits * rows + row

    every = tl.arange(0, MOST_SPLITS)
    sums = tl.load(logsum + first_place + every * rows, mask=every < splits, other=float("-inf"))
    largest = tl.max(sums, 0)
    total = tl.sum(tl.exp2(sums - largest), 0)
    value = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        place = first_place + split * rows
        weight = tl.exp2(tl.load(logsum + place, mask=split < splits, other=float("-inf")) - largest)
        found = (weight > 0.0)[:, None] & inside  # only there something was written
        part = tl.load(mixed + place[:, None] * RANK + channel, mask=found, other=0.0)
        value += tl.sum(weight[:, None] * part, 0)
    place = (batch * HEADS + row % HEADS) * tokens + row // HEADS
    tl.store(output + place * RANK + channel, (value / total).to(output.dtype.element_ty), mask=inside)


def attend_constants(shape: LatentShape, sm: int, partial: bool) -> dict[str, Any]:
    """What `_attend` is compiled for."""
    tiles = tiles_for(shape, sm)
    return {
        "HEADS": shape.heads,
        "RANK": shape.rank,
        "ROPE": shape.rope,
        "RANK_TILE": max(16, triton.next_power_of_2(shape.rank)),  # what a matrix instruction takes at least
        "ROPE_TILE": max(16, triton.next_power_of_2(shape.rope)),
        "ROWS": tiles.rows,
        "ENTRIES": tiles.entries,
        "PARTIAL": partial,
        "FLOAT8": shape.float8,
        "CONVERTS": sm >= 89,
    } | ({} if partial else {"logsum": None})


def join_constants(shape: LatentShape) -> dict[str, Any]:
    return {
        "HEADS": shape.heads,
        "RANK": shape.rank,
        "MOST_SPLITS": MOST_SPLITS,
        "SPLITS": JOINED_SPLITS,
        "CHANNELS": JOINED_CHANNELS,
    }


def sources(shape: LatentShape, sm: int) -> dict[str, KernelSource]:
    """By what they are for: "whole" takes all entries in one split; "split" leaves its parts to "join"."""
    kind, tiles = f"*{shape.dtype}", tiles_for(shape, sm)
    types = {"query": kind, "cache": "*u8" if shape.float8 else kind, "cache_position": "*i64", "logsum": "*fp32"}
    types |= {"output": kind, "scale": "fp32", "cache_scale": "fp32"}
    types |= dict.fromkeys(("tokens", "capacity", "splits"), "i32")
    found = {}
    for name, partial in (("whole", False), ("split", True)):
        constants = attend_constants(shape, sm, partial)
        written = types | {"mixed": "*fp32" if partial else kind}
        found[name] = KernelSource(_attend, written, constants, tiles.warps, tiles.stages)
    found["join"] = KernelSource(_join, types | {"mixed": "*fp32"}, join_constants(shape))
    return found


def layout_for(shape: LatentShape, sm: int) -> LatentLaunch:
    tiles = tiles_for(shape, sm)
    return LatentLaunch(tiles.rows, tiles.entries, JOINED_CHANNELS)
