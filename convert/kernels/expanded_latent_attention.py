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
from llmc.convert.kernels.latent_expansion import SEQUENCES, expand_source, sequence_of
from llmc.runtime.plugins.expanded_latent_attention import ExpandedLaunch, ExpandedShape


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

    first, before, total = sequence_of(first_block, cache_position, batch, tokens, capacity, BLOCK, SEQUENCES)
    end_block = tl.minimum(first_block + blocks, total)
    if first_block >= end_block:
        return
    last, _, _ = sequence_of(end_block - 1, cache_position, batch, tokens, capacity, BLOCK, SEQUENCES)
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


def sources(shape: ExpandedShape, sm: int) -> dict[str, KernelSource]:
    """The kernels "expand" and "attend"."""
    kind, tiles = f"*{shape.dtype}", tiles_for(shape, sm)
    types = dict.fromkeys(("query", "rotated", "key_weight", "value_weight", "keys", "values", "output"), kind)
    types |= {"cache": "*u8" if shape.float8 else kind, "cache_position": "*i64", "mixed": "*fp32", "sums": "*fp32"}
    types |= {"scale": "fp32", "cache_scale": "fp32"}
    types |= dict.fromkeys(("batch", "tokens", "capacity", "first_head", "heads", "first_block", "blocks"), "i32")
    return {
        "expand": expand_source(shape, sm, types),
        "attend": KernelSource(_attend, types, attend_constants(shape, sm), tiles.warps, tiles.stages),
    }


def layout_for(shape: ExpandedShape, sm: int) -> ExpandedLaunch:
    columns = -(-shape.nope // columns_for(shape.nope)) + -(-shape.values // columns_for(shape.values))
    return ExpandedLaunch(tiles_for(shape, sm).tokens, BLOCK, columns)
