"""`llmc.LatentAttention` as kernels: MLA in absorbed form (DeepSeek-V2, section 2.1.2) over the latent cache.

All heads attend to the same cache entries, so the rows of a tile are heads of one token, then those of the next: with
many heads a tile reads no entry that only a later token sees. The softmax is computed on the way (Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018).

Where there are few tiles of rows, several programs, the workers, take the entries of all sequences. They lie in one
row, tile behind tile of entries, and each worker takes an even part of it, whatever the sequences' lengths: the end of
one, perhaps, some in whole, and the beginning of another. What is only a part of a sequence goes to the workspace, and
a second kernel joins the parts ("Flash-Decoding", Dao and others, 2023). Lengths are known on the GPU alone; every
program finds its part from all of them.

Tensors are contiguous: query [B, Hq, S, R + P], cache [B, 1, T, R + P], output [B, Hq, S, R]. An FP8 cache is passed as
its codes, and its scale as `cache_scale`; what the cache holds is code * scale. For other caches that is 1.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.decoding import decode_float8
from llmc.convert.kernels.latent_attention_tiles import Tiles, tiles_for
from llmc.runtime.plugins.latent_attention import MOST_WORKERS, LatentLaunch, LatentShape

JOINED_CHANNELS = 128  # of a program of the second kernel, so that few rows make enough programs
JOINED_PARTS = 16  # that it reads the values of together
SEQUENCES = 128  # looked at in one go


@triton.jit
def _tiles(
    cache_position: tl.tensor, sequence: tl.tensor, batch: tl.tensor, token: tl.tensor, capacity: tl.tensor,
    ENTRIES: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Of the entries that a token of each sequence sees."""
    position = tl.load(cache_position + sequence, mask=sequence < batch, other=-1).to(tl.int32)
    visible = tl.where(sequence < batch, tl.minimum(position + token + 1, capacity), 0)
    return tl.cdiv(tl.maximum(visible, 0), ENTRIES)


@triton.jit
def _all_tiles(
    cache_position: tl.tensor, batch: tl.tensor, token: tl.tensor, capacity: tl.tensor,
    ENTRIES: tl.constexpr, SEQUENCES: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    total = 0
    for start in range(0, batch, SEQUENCES):
        sequence = start + tl.arange(0, SEQUENCES)
        total += tl.sum(_tiles(cache_position, sequence, batch, token, capacity, ENTRIES), 0)
    return total


@triton.jit
def _attend(
    query: tl.tensor, cache: tl.tensor, cache_position: tl.tensor, output: tl.tensor, mixed: tl.tensor,
    logsum: tl.tensor, scale: tl.tensor, cache_scale: tl.tensor, batch: tl.tensor, tokens: tl.tensor,
    capacity: tl.tensor,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROPE: tl.constexpr, RANK_TILE: tl.constexpr, ROPE_TILE: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, FLOAT8: tl.constexpr, PAIRS: tl.constexpr, SEQUENCES: tl.constexpr,
    TRANSPOSED: tl.constexpr, RECOMPUTES: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: row tiles, workers. A program takes a tile of the S * Hq rows, and a part of the entries of all sequences.

    A worker has up to two sequences of which it takes a part. Their rows go to mixed [workers, 2, S * Hq, R] float32,
    each part's own average, that of a sequence which another worker began first; and to logsum [workers, 2, S * Hq]
    float32 the base-2 logarithm of its sum of weights, -inf for rows that see nothing of it.
    """
    CHANNELS: tl.constexpr = RANK + ROPE
    rows, worker = tokens * HEADS, tl.program_id(1)
    # The last tokens see most entries: begun first, they do not keep the GPU waiting at the end.
    end_row = (tl.num_programs(0) - tl.program_id(0)) * ROWS
    last_token = (tl.minimum(end_row, rows) - 1) // HEADS

    share = tl.cdiv(_all_tiles(cache_position, batch, last_token, capacity, ENTRIES, SEQUENCES), tl.num_programs(1))
    begin = worker * share
    # The sequences that the part begins and ends in, and how many tiles lie before the first.
    first, last, before, total = 0, 0, 0, 0
    for start in range(0, batch, SEQUENCES):
        sequence = start + tl.arange(0, SEQUENCES)
        tiles = _tiles(cache_position, sequence, batch, last_token, capacity, ENTRIES)
        ends = total + tl.cumsum(tiles, 0)
        first += tl.sum((ends <= begin).to(tl.int32), 0)
        last += tl.sum((ends < begin + share).to(tl.int32), 0)
        before += tl.sum(tl.where(ends <= begin, tiles, 0), 0)
        total = tl.max(ends, 0)
    last = tl.minimum(last, batch - 1)

    to_exponent = scale * cache_scale * 1.4426950408889634  # powers of 2 are cheaper than those of e
    for sequence in tl.range(first, last + 1, disable_licm=True):  # what is the same for all would fill registers
        number = tl.cast(sequence, tl.int64)  # offsets pass 2^31; inside of one sequence they do not
        position = tl.load(cache_position + sequence).to(tl.int32)
        visible = tl.minimum(position + last_token + 1, capacity)
        tiles = tl.cdiv(visible, ENTRIES)
        first_tile, last_tile = tl.maximum(begin - before, 0), tl.minimum(begin + share - before, tiles)
        before += tiles
        end = tl.minimum(last_tile * ENTRIES, visible)

        # Nothing is before the first sequence: the compiler must not know that this is 0. It would make places that are
        # the same for all sequences once, and keep them in registers that the loop over entries needs.
        zero = tl.multiple_of(tl.minimum(before, 0), RANK_TILE)
        rank, rope = zero + tl.arange(0, RANK_TILE), zero + RANK + tl.arange(0, ROPE_TILE)
        in_rank, in_rope = rank < RANK, rope < CHANNELS
        row = end_row - ROWS + tl.arange(0, ROWS) + zero
        inside = row < rows
        token, head = row // HEADS, row % HEADS
        end_of_row = tl.minimum(position + token + 1, end)
        asked = query + number * rows * CHANNELS + (head * tokens + token)[:, None] * CHANNELS
        query_latent = tl.load(asked + rank, mask=inside[:, None] & in_rank, other=0.0)
        query_rope = tl.load(asked + rope, mask=inside[:, None] & in_rope, other=0.0)
        held = cache + number * capacity * CHANNELS
        largest = tl.full((ROWS,), -1e30, tl.float32)  # finite, so that a row that sees nothing yet makes no inf - inf
        total_weight = tl.zeros((ROWS,), tl.float32)
        value = tl.zeros((ROWS, RANK_TILE), tl.float32)
        if FLOAT8:
            # Loaded a step ahead, since the compiler only pipelines what products are made of.
            entry = first_tile * ENTRIES + tl.arange(0, ENTRIES)
            known = (entry < end)[:, None]
            codes = tl.load(held + entry[:, None] * CHANNELS + rank, mask=known & in_rank, other=0)
        for start in tl.range(first_tile * ENTRIES, end, ENTRIES, disable_licm=RECOMPUTES):
            entry = start + tl.arange(0, ENTRIES)
            known = (entry < end)[:, None]  # what lies beyond may be NaN, which a weight of 0 would not hide
            rotated = tl.load(held + entry[:, None] * CHANNELS + rope, mask=known & in_rope, other=0)
            if FLOAT8:
                latent = decode_float8(codes, query_latent.dtype == tl.bfloat16, PAIRS)
                rotated = decode_float8(rotated, query_latent.dtype == tl.bfloat16, PAIRS)
                following = entry + ENTRIES
                wanted = (following < end)[:, None] & in_rank
                codes = tl.load(held + following[:, None] * CHANNELS + rank, mask=wanted, other=0)
            else:
                latent = tl.load(held + entry[:, None] * CHANNELS + rank, mask=known & in_rank, other=0)
            if TRANSPOSED:  # keeps the compiler from giving both products one layout, in which warps repeat scores
                scores = tl.dot(rotated, query_rope.T, tl.dot(latent, query_latent.T)).T
            else:
                scores = tl.dot(query_rope, rotated.T, tl.dot(query_latent, latent.T))
            scores = tl.where(entry < end_of_row[:, None], scores * to_exponent, float("-inf"))
            larger = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - larger[:, None])
            shrink = tl.exp2(largest - larger)
            total_weight = total_weight * shrink + tl.sum(weights, 1)
            value = tl.dot(weights.to(latent.dtype), latent, value * shrink[:, None])
            largest = larger

        nothing = total_weight == 0.0  # NaN is not nothing
        total_weight = tl.where(nothing, 1.0, total_weight)
        value = value * (cache_scale / total_weight)[:, None]
        found = end_row - (ROWS - tl.arange(0, ROWS)) + tl.minimum(last_tile, 0)
        inside = found < rows
        if (first_tile == 0) & (last_tile == tiles):
            place = found % HEADS * tokens + found // HEADS
            tl.store(
                output + number * rows * RANK + (place[:, None] * RANK + rank),
                value.to(output.dtype.element_ty),
                mask=inside[:, None] & in_rank,
            )
        else:
            part = (2 * worker + (first_tile == 0).to(tl.int32)).to(tl.int64) * rows
            exponent = tl.where(nothing, float("-inf"), largest + tl.log2(total_weight))
            tl.store(logsum + part + found, exponent, mask=inside)
            written = (inside & ~nothing)[:, None] & in_rank
            tl.store(mixed + part * RANK + (found[:, None] * RANK + rank), value, mask=written)


@triton.jit
def _join(
    mixed: tl.tensor, logsum: tl.tensor, cache_position: tl.tensor, output: tl.tensor,
    batch: tl.tensor, tokens: tl.tensor, capacity: tl.tensor, workers: tl.tensor,
    HEADS: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr, SEQUENCES: tl.constexpr,
    MOST_WORKERS: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: S * Hq, tiles of R, B. Averages the parts of a sequence, if it has several, by their sums of weights."""
    row, number = tl.program_id(0), tl.program_id(2).to(tl.int64)
    rows = tokens * HEADS
    last_token = (tl.minimum((row // ROWS + 1) * ROWS, rows) - 1) // HEADS
    share = tl.cdiv(_all_tiles(cache_position, batch, last_token, capacity, ENTRIES, SEQUENCES), workers)
    before = _all_tiles(cache_position, tl.program_id(2), last_token, capacity, ENTRIES, SEQUENCES)
    tiles = _tiles(cache_position, tl.program_id(2), batch, last_token, capacity, ENTRIES)
    first, last = before // tl.maximum(share, 1), (before + tiles - 1) // tl.maximum(share, 1)  # workers
    if first == last:  # which is done then
        return
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < RANK

    # The first of them began this sequence, after the one that it perhaps took the end of; the others went on.
    every = first + tl.arange(0, MOST_WORKERS)
    place = (2 * every + (every == first).to(tl.int32)) * rows + row
    sums = tl.load(logsum + place, mask=every <= last, other=float("-inf"))
    largest = tl.max(sums, 0)
    total = tl.sum(tl.exp2(sums - largest), 0)
    value = tl.zeros((CHANNELS,), tl.float32)
    for start in range(first, last + 1, PARTS):
        some = start + tl.arange(0, PARTS)
        of_some = ((2 * some + (some == first).to(tl.int32)) * rows + row).to(tl.int64)
        weight = tl.exp2(tl.load(logsum + of_some, mask=some <= last, other=float("-inf")) - largest)
        written = (weight > 0.0)[:, None] & inside
        found = tl.load(mixed + of_some[:, None] * RANK + channel, mask=written, other=0.0)
        value += tl.sum(weight[:, None] * found, 0)
    at = (number * HEADS + row % HEADS) * tokens + row // HEADS
    tl.store(output + at * RANK + channel, (value / total).to(output.dtype.element_ty), mask=inside)


def attend_constants(shape: LatentShape, sm: int) -> dict[str, Any]:
    """What `_attend` is compiled for."""
    tiles = tiles_for(shape, sm)
    return _schedule_constants(tiles) | {
        "HEADS": shape.heads,
        "RANK": shape.rank,
        "ROPE": shape.rope,
        "RANK_TILE": max(16, triton.next_power_of_2(shape.rank)),  # what a matrix instruction takes at least
        "ROPE_TILE": max(16, triton.next_power_of_2(shape.rope)),
        "FLOAT8": shape.float8,
        "PAIRS": not triton.knobs.runtime.interpret,
        "TRANSPOSED": tiles.transposed,
        "RECOMPUTES": tiles.recomputes,
    }


def _schedule_constants(tiles: Tiles) -> dict[str, Any]:
    return {"ROWS": tiles.rows, "ENTRIES": tiles.entries, "SEQUENCES": SEQUENCES}


def join_constants(shape: LatentShape, sm: int) -> dict[str, Any]:
    return _schedule_constants(tiles_for(shape, sm)) | {
        "HEADS": shape.heads,
        "RANK": shape.rank,
        "MOST_WORKERS": MOST_WORKERS,
        "PARTS": JOINED_PARTS,
        "CHANNELS": JOINED_CHANNELS,
    }


def sources(shape: LatentShape, sm: int) -> dict[str, KernelSource]:
    """The kernel "attend", and "join" for what several workers have of one sequence."""
    kind, tiles = f"*{shape.dtype}", tiles_for(shape, sm)
    types = {"query": kind, "cache": "*u8" if shape.float8 else kind, "cache_position": "*i64", "output": kind}
    types |= {"mixed": "*fp32", "logsum": "*fp32", "scale": "fp32", "cache_scale": "fp32"}
    types |= dict.fromkeys(("batch", "tokens", "capacity", "workers"), "i32")
    return {
        "attend": KernelSource(_attend, types, attend_constants(shape, sm), tiles.warps, tiles.stages),
        "join": KernelSource(_join, types, join_constants(shape, sm)),
    }


def layout_for(shape: LatentShape, sm: int) -> LatentLaunch:
    tiles = tiles_for(shape, sm)
    return LatentLaunch(tiles.rows, tiles.entries, JOINED_CHANNELS, tiles.programs)
