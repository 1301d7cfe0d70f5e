"""MLA of prompts as kernels, a part of `llmc.PhasedLatentAttention`, with keys and values of every head (DeepSeek-V2,
section 2.1). For a token and an entry that takes a third of the absorbed form's work, once entries are expanded.

Entries of all sequences lie in one row, block behind block, and some blocks are expanded and attended to at a time, for
some heads: "expand" writes keys and values into the workspace, and "attend" reads them for all tokens. Rotated
channels, which heads share, are read from the cache. The softmax is computed on the way (Milakov and Gimelshein,
"Online normalizer calculation for softmax", 2018). A sequence that does not end with the last of the blocks is gone on
with in the next pass, by the program for the same tokens and head. Lengths are known on the GPU alone.

Of an FP8 cache keys and values are expanded from its codes, without `cache_scale`, by which scores and averages are
multiplied.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.decoding import decode_float8
from llmc.convert.kernels.expanded_latent_attention_tiles import BLOCK, columns_for, tiles_for
from llmc.runtime.plugins.expanded_latent_attention import ExpandedLaunch, ExpandedShape

SEQUENCES = 128  # looked at in one go
STEP = 64  # channels of a latent that are multiplied together


@triton.jit
def _blocks(
    cache_position: tl.tensor, sequence: tl.tensor, batch: tl.tensor, tokens: tl.tensor, capacity: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Of the entries that so many tokens of each sequence see: one at least, so that nothing is left unwritten."""
    position = tl.load(cache_position + sequence, mask=sequence < batch, other=0)
    # Where TensorRT times a plugin, positions are any numbers.
    position = tl.minimum(tl.maximum(position, 0), capacity).to(tl.int32)
    found = tl.maximum(tl.cdiv(tl.minimum(position + tokens, capacity), BLOCK), 1)
    return tl.where(sequence < batch, found, 0)


@triton.jit
def _sequence_of(
    block: tl.tensor, cache_position: tl.tensor, batch: tl.tensor, tokens: tl.tensor, capacity: tl.tensor,
    BLOCK: tl.constexpr, SEQUENCES: tl.constexpr,
) -> Any:  # fmt: skip
    """Whose the block is, how many blocks lie before that sequence, and how many there are."""
    number, before, total = 0, 0, 0
    for start in range(0, batch, SEQUENCES):
        sequence = start + tl.arange(0, SEQUENCES)
        blocks = _blocks(cache_position, sequence, batch, tokens, capacity, BLOCK)
        ends = total + tl.cumsum(blocks, 0)
        passed = (ends <= block) & (sequence < batch)
        number += tl.sum(passed.to(tl.int32), 0)
        before += tl.sum(tl.where(passed, blocks, 0), 0)
        total = tl.max(ends, 0)
    return number, before, total


@triton.jit
def _product(
    held: tl.tensor, written: tl.tensor, weight: tl.tensor, made: tl.tensor, tile: tl.tensor, zero: tl.tensor,
    RANK: tl.constexpr, ROPE: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, FLOAT8: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PAIRS: tl.constexpr,
) -> None:  # fmt: skip
    """A tile of columns of made [BLOCK, WIDTH]: latents times a weight [WIDTH, R] of KEYS, or [R, WIDTH]."""
    EVEN: tl.constexpr = RANK % STEP == 0
    row = tl.arange(0, BLOCK)[:, None]
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    known = column if WIDTH % COLUMNS == 0 else tl.minimum(column, WIDTH - 1)  # others are not written
    sums = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for first in range(0, RANK + zero, STEP):
        channel = first + tl.arange(0, STEP)
        inside = channel < RANK
        latent = tl.load(held + (row * (RANK + ROPE) + channel), mask=written if EVEN else written & inside, other=0)
        if FLOAT8:
            latent = decode_float8(latent, made.dtype.element_ty == tl.bfloat16, PAIRS)
        place = known * RANK + channel[:, None] if KEYS else channel[:, None] * WIDTH + known
        factor = tl.load(weight + place, mask=None if EVEN else inside[:, None], other=None if EVEN else 0.0)
        sums = tl.dot(latent, factor, sums)
    mask = None if WIDTH % COLUMNS == 0 else (column < WIDTH)[None, :]
    tl.store(made + (row * WIDTH + column), sums.to(made.dtype.element_ty), mask=mask)


@triton.jit
def _expand(
    cache: tl.tensor, key_weight: tl.tensor, value_weight: tl.tensor, keys: tl.tensor, values: tl.tensor,
    cache_position: tl.tensor, batch: tl.tensor, tokens: tl.tensor, capacity: tl.tensor,
    first_head: tl.tensor, heads: tl.tensor, first_block: tl.tensor, blocks: tl.tensor,
    RANK: tl.constexpr, ROPE: tl.constexpr, N: tl.constexpr, V: tl.constexpr, FLOAT8: tl.constexpr,
    BLOCK: tl.constexpr, N_COLUMNS: tl.constexpr, V_COLUMNS: tl.constexpr, STEP: tl.constexpr,
    PAIRS: tl.constexpr, SEQUENCES: tl.constexpr,
) -> None:  # fmt: skip
    """Write keys [heads, blocks * BLOCK, N] and values [heads, blocks * BLOCK, V].

    Grid: as many as run at once. Programs of one block follow each other, so that it stays in L2.
    """
    OF_KEYS: tl.constexpr = (N + N_COLUMNS - 1) // N_COLUMNS
    TILES: tl.constexpr = OF_KEYS + (V + V_COLUMNS - 1) // V_COLUMNS
    sequence, before, total = _sequence_of(first_block, cache_position, batch, tokens, capacity, BLOCK, SEQUENCES)
    end_block = tl.minimum(first_block + blocks, total)
    after = before + _blocks(cache_position, sequence, batch, tokens, capacity, BLOCK)
    # No block is before the first: the compiler must not know how long the loop over R is, or it unrolls it.
    zero = tl.minimum(first_block, 0)
    for item in range(tl.program_id(0), (end_block - first_block) * heads * TILES, tl.num_programs(0)):
        block = first_block + item // (heads * TILES)
        head, tile = item // TILES % heads, item % TILES
        while after <= block:
            sequence += 1
            before = after
            after += _blocks(cache_position, sequence, batch, tokens, capacity, BLOCK)
        position = tl.minimum(tl.maximum(tl.load(cache_position + sequence), 0), capacity).to(tl.int32)
        visible = tl.minimum(position + tokens, capacity)
        # What lies beyond may be NaN, which a weight of 0 would not hide.
        written = tl.arange(0, BLOCK)[:, None] < visible - (block - before) * BLOCK
        held = cache + (sequence.to(tl.int64) * capacity + (block - before) * BLOCK) * (RANK + ROPE)
        place = (head.to(tl.int64) * blocks + (block - first_block)) * BLOCK
        of_head = (first_head + head).to(tl.int64) * RANK
        if tile < OF_KEYS:
            _product(
                held, written, key_weight + of_head * N, keys + place * N, tile, zero,
                RANK, ROPE, N, True, FLOAT8, BLOCK, N_COLUMNS, STEP, PAIRS,
            )  # fmt: skip
        else:
            _product(
                held, written, value_weight + of_head * V, values + place * V, tile - OF_KEYS, zero,
                RANK, ROPE, V, False, FLOAT8, BLOCK, V_COLUMNS, STEP, PAIRS,
            )  # fmt: skip


@triton.jit
def _channels(
    base: tl.tensor, row: tl.tensor, channel: tl.tensor, known: tl.tensor | None, COUNT: tl.constexpr,
    ROOM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Of rows, those that are `known`; zero where a tile has room for more channels than there are."""
    if COUNT == ROOM:
        if known is None:
            return tl.load(base + (row + channel))
        else:
            return tl.load(base + (row + channel), mask=known, other=0)
    else:
        mask = (channel < COUNT)[None, :]
        return tl.load(base + (row + channel), mask=mask if known is None else mask & known, other=0)


@triton.jit
def _attend(
    query: tl.tensor, rotated: tl.tensor, cache: tl.tensor, keys: tl.tensor, values: tl.tensor,
    cache_position: tl.tensor, output: tl.tensor, mixed: tl.tensor, sums: tl.tensor,
    scale: tl.tensor, cache_scale: tl.tensor, batch: tl.tensor, tokens: tl.tensor, capacity: tl.tensor,
    first_head: tl.tensor, first_block: tl.tensor, blocks: tl.tensor,
    HEADS: tl.constexpr, RANK: tl.constexpr, N: tl.constexpr, ROPE: tl.constexpr, V: tl.constexpr,
    N_TILE: tl.constexpr, REST_TILE: tl.constexpr, ROPE_TILE: tl.constexpr, V_TILE: tl.constexpr,
    FLOAT8: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ENTRIES: tl.constexpr, PAIRS: tl.constexpr,
    SEQUENCES: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: tiles of S, heads. A program takes a tile of the tokens of every sequence that the blocks hold entries of.

    Keys are N_TILE channels and REST_TILE more, if N is no power of 2, and the rotated ones.
    """
    CHANNELS: tl.constexpr = RANK + ROPE
    BF16: tl.constexpr = query.dtype.element_ty == tl.bfloat16
    head, heads = tl.program_id(1), tl.num_programs(1)
    # The last tokens see most entries: begun first, they do not keep the GPU waiting at the end.
    first_token = (tl.num_programs(0) - 1 - tl.program_id(0)) * TOKENS
    last_token = tl.minimum(first_token + TOKENS, tokens) - 1

    first, before, total = _sequence_of(first_block, cache_position, batch, tokens, capacity, BLOCK, SEQUENCES)
    end_block = tl.minimum(first_block + blocks, total)
    if first_block >= end_block:
        return
    last, _, _ = _sequence_of(end_block - 1, cache_position, batch, tokens, capacity, BLOCK, SEQUENCES)
    held_keys = keys + (head * blocks).to(tl.int64) * (BLOCK * N)
    held_values = values + (head * blocks).to(tl.int64) * (BLOCK * V)
    to_exponent = scale * cache_scale * 1.4426950408889634  # powers of 2 are cheaper than those of e

    for sequence in tl.range(first, last + 1, disable_licm=True):
        number = tl.cast(sequence, tl.int64)
        position = tl.load(cache_position + number)
        own = tl.minimum(tl.maximum(position, 0), capacity).to(tl.int32)
        position = tl.minimum(tl.maximum(position, -tokens), capacity).to(tl.int32)
        visible = tl.maximum(tl.minimum(position + last_token + 1, capacity), 0)
        needed = tl.maximum(tl.cdiv(visible, BLOCK), 1)  # blocks
        begin_block, stop_block = tl.maximum(first_block - before, 0), tl.minimum(end_block - before, needed)
        offset = (before - first_block) * BLOCK  # of entry 0 in the workspace, where it may not be
        before += tl.maximum(tl.cdiv(tl.minimum(own + tokens, capacity), BLOCK), 1)
        if begin_block < needed:
            end = tl.minimum(stop_block * BLOCK, visible)
            token = first_token + tl.arange(0, TOKENS)
            inside = token < tokens
            n, rest, rope = tl.arange(0, N_TILE), N_TILE + tl.arange(0, max(REST_TILE, 1)), tl.arange(0, ROPE_TILE)
            v = tl.arange(0, V_TILE)
            known = inside[:, None]
            asked = query + (number * tokens * HEADS + first_head + head) * N
            q = _channels(asked, token[:, None] * (HEADS * N), n, known, N, N_TILE)
            if REST_TILE:
                q_rest = _channels(asked, token[:, None] * (HEADS * N), rest, known, N, N_TILE + REST_TILE)
            asked = rotated + (number * HEADS + first_head + head) * tokens * ROPE
            q_rope = _channels(asked, token[:, None] * ROPE, rope, known, ROPE, ROPE_TILE)

            known = (inside & (begin_block > 0))[:, None]  # what the pass before left
            left = sums + head * tokens + token
            largest = tl.load(left, mask=inside & (begin_block > 0), other=-1e30)  # finite: inf - inf is NaN
            weight = tl.load(left + heads * tokens, mask=inside & (begin_block > 0), other=0.0)
            average = _channels(mixed + (head * tokens).to(tl.int64) * V, token[:, None] * V, v, known, V, V_TILE)
            entry = tl.arange(0, ENTRIES)
            # Up to there all tokens of the tile see all entries.
            begin, whole = begin_block * BLOCK, tl.minimum(position + first_token + 1, end) // ENTRIES * ENTRIES
            whole = tl.maximum(begin, whole)
            for MASKED in tl.static_range(2):
                for start in tl.range(whole if MASKED else begin, end if MASKED else whole, ENTRIES, disable_licm=True):
                    there = None
                    if MASKED:
                        there = (start + entry < end)[:, None]  # what lies beyond may be NaN
                    row = (offset + start).to(tl.int64)
                    held = cache + (number * capacity + start) * CHANNELS + RANK
                    k_rope = _channels(held, entry[:, None] * CHANNELS, rope, there, ROPE, ROPE_TILE)
                    if FLOAT8:
                        k_rope = decode_float8(k_rope, BF16, PAIRS)
                    held = held_keys + row * N
                    scores = tl.dot(q_rope, k_rope.T)
                    scores = tl.dot(q, _channels(held, entry[:, None] * N, n, None, N, N_TILE).T, scores)
                    if REST_TILE:
                        k = _channels(held, entry[:, None] * N, rest, None, N, N_TILE + REST_TILE)
                        scores = tl.dot(q_rest, k.T, scores)
                    if MASKED:
                        seen = (start + entry <= position + token[:, None]) & (start + entry < end)
                        scores = tl.where(seen, scores, float("-inf"))
                    larger = tl.maximum(largest, tl.max(scores, 1) * to_exponent)
                    weights = tl.exp2(scores * to_exponent - larger[:, None])
                    shrink = tl.exp2(largest - larger)
                    weight = weight * shrink + tl.sum(weights, 1)
                    held = _channels(held_values + row * V, entry[:, None] * V, v, None, V, V_TILE)
                    average = tl.dot(weights.to(held.dtype), held, average * shrink[:, None])
                    largest = larger

            # Nothing is less than the end: the compiler must not know that this is 0. It would keep the places of what
            # was read above in registers that the loops need.
            token = first_token + tl.arange(0, TOKENS) + tl.minimum(end, 0)
            inside, v = token < tokens, tl.arange(0, V_TILE)
            known = inside[:, None] & (v < V)
            if stop_block == needed:
                average = average * (cache_scale / tl.where(weight == 0.0, 1.0, weight))[:, None]
                made = output + (number * tokens * HEADS + first_head + head) * V
                tl.store(made + (token[:, None] * (HEADS * V) + v), average.to(output.dtype.element_ty), mask=known)
            else:
                left = sums + head * tokens + token
                tl.store(left, largest, mask=inside)
                tl.store(left + heads * tokens, weight, mask=inside)
                tl.store(mixed + (head * tokens).to(tl.int64) * V + (token[:, None] * V + v), average, mask=known)


def attend_constants(shape: ExpandedShape, sm: int) -> dict[str, Any]:
    """What `_attend` is compiled for."""
    tiles = tiles_for(shape, sm)
    whole = max(16, 1 << shape.nope.bit_length() - 1)  # what a matrix instruction takes at least
    rest = max(0, shape.nope - whole)
    return {
        "HEADS": shape.heads,
        "RANK": shape.rank,
        "N": shape.nope,
        "ROPE": shape.rope,
        "V": shape.values,
        "N_TILE": whole,
        "REST_TILE": max(16, triton.next_power_of_2(rest)) if rest else 0,
        "ROPE_TILE": max(16, triton.next_power_of_2(shape.rope)),
        "V_TILE": max(16, triton.next_power_of_2(shape.values)),
        "FLOAT8": shape.float8,
        "BLOCK": BLOCK,
        "TOKENS": tiles.tokens,
        "ENTRIES": tiles.entries,
        "PAIRS": not triton.knobs.runtime.interpret,
        "SEQUENCES": SEQUENCES,
    }


def expand_constants(shape: ExpandedShape) -> dict[str, Any]:
    """What `_expand` is compiled for."""
    return {
        "RANK": shape.rank,
        "ROPE": shape.rope,
        "N": shape.nope,
        "V": shape.values,
        "FLOAT8": shape.float8,
        "BLOCK": BLOCK,
        "N_COLUMNS": columns_for(shape.nope),
        "V_COLUMNS": columns_for(shape.values),
        "STEP": STEP,
        "PAIRS": not triton.knobs.runtime.interpret,
        "SEQUENCES": SEQUENCES,
    }


def sources(shape: ExpandedShape, sm: int) -> dict[str, KernelSource]:
    """The kernels "expand" and "attend"."""
    kind, tiles = f"*{shape.dtype}", tiles_for(shape, sm)
    types = dict.fromkeys(("query", "rotated", "key_weight", "value_weight", "keys", "values", "output"), kind)
    types |= {"cache": "*u8" if shape.float8 else kind, "cache_position": "*i64", "mixed": "*fp32", "sums": "*fp32"}
    types |= {"scale": "fp32", "cache_scale": "fp32"}
    types |= dict.fromkeys(("batch", "tokens", "capacity", "first_head", "heads", "first_block", "blocks"), "i32")
    registers = 128 if sm // 10 == 10 else None
    return {
        "expand": KernelSource(_expand, types, expand_constants(shape), 8, tiles.expand_stages, (), registers),
        "attend": KernelSource(_attend, types, attend_constants(shape, sm), tiles.warps, tiles.stages),
    }


def layout_for(shape: ExpandedShape, sm: int) -> ExpandedLaunch:
    columns = -(-shape.nope // columns_for(shape.nope)) + -(-shape.values // columns_for(shape.values))
    return ExpandedLaunch(tiles_for(shape, sm).tokens, BLOCK, columns)
