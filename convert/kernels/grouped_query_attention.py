"""`llmc.GroupedQueryAttention` as kernels: GQA (Ainslie and others, 2023) over what there is in the cache.

The rows of a program are the query heads of one group, token by token, so that its keys and values are read once for
all of them. The softmax is computed on the way (Milakov and Gimelshein, "Online normalizer calculation for softmax",
2018); where there are few rows, programs take equal parts of the entries of all sequences, and a second kernel joins
what they found ("Flash-Decoding", Dao and others, 2023).

Tensors are contiguous: query [B, Hq, S, D], key [B, G, T, D], value [B, G, T, V], output [B, Hq, S, V].
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.grouped_query_attention_tiles import Tiles, tiles_for
from llmc.runtime.plugins.grouped_query_attention import MOST_SEQUENCES, GroupedQueryLaunch, GroupedQueryShape

JOINED_CHANNELS = 128  # of a program of the second kernel, so that few rows make enough programs
JOINED_PARTS = 16  # that it reads the values of together


@triton.jit
def _seen(cache_position: tl.tensor, sequence: tl.tensor, wanted: tl.tensor, tokens: tl.tensor, capacity: tl.tensor,
          WINDOW: tl.constexpr) -> Any:  # fmt: skip
    """The position of the first token, and from where to where the tokens of a sequence see entries."""
    position = tl.load(cache_position + sequence, mask=wanted, other=0)
    # Where TensorRT times a plugin, positions are any numbers.
    position = tl.minimum(tl.maximum(position, -tokens), capacity).to(tl.int32)
    end = tl.where(wanted, tl.minimum(position + tokens, capacity), 0)
    if WINDOW:
        return position, tl.minimum(tl.maximum(position + 1 - WINDOW, 0), end), end
    return position, tl.minimum(0, end), end


@triton.jit
def _parts(cache_position: tl.tensor, sequences: tl.tensor, portions: tl.tensor, tokens: tl.tensor, capacity: tl.tensor,
           WINDOW: tl.constexpr, ENTRIES: tl.constexpr, SEQUENCES: tl.constexpr) -> Any:  # fmt: skip
    """How many entries a part has at most, and for every sequence its number of parts, and that up to its end."""
    sequence = tl.arange(0, SEQUENCES)
    _, first, end = _seen(cache_position, sequence, sequence < sequences, tokens, capacity, WINDOW)
    spans = end - first
    portion = tl.cdiv(tl.sum(spans.to(tl.int64), 0), portions).to(tl.int32)
    portion = tl.cdiv(tl.maximum(portion, 2 * ENTRIES), ENTRIES) * ENTRIES
    parts = tl.cdiv(spans, portion)
    return portion, parts, tl.cumsum(parts, 0)


@triton.jit
def _attend(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, cache_position: tl.tensor, sinks: tl.tensor,
    mixed: tl.tensor, logsum: tl.tensor, scale: tl.tensor, softcap: tl.tensor,
    tokens: tl.tensor, capacity: tl.tensor, sequences: tl.tensor, portions: tl.tensor,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    D_TILE: tl.constexpr, V_TILE: tl.constexpr, WINDOW: tl.constexpr, SEQUENCES: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: row tiles of G groups of B sequences. One program takes a tile of the S * Hq / G rows of a group.

    With `portions`, grid: row tiles of G groups, places. A program takes of a sequence the part that has its place;
    mixed is [places, G, rows, V] float32, each part's own average, and logsum [places, G, rows] float32 the base-2
    logarithm of its sum of weights; of a row without entries only logsum is written, as -inf.
    """
    LOG2E: tl.constexpr = 1.4426950408889634  # powers of 2 are cheaper than those of e
    PER_GROUP: tl.constexpr = HEADS // GROUPS
    rows = tokens * PER_GROUP
    tiles = tl.cdiv(rows, ROWS)
    # The last tokens see most entries: begun first, they do not keep the GPU waiting at the end.
    tile = tiles - 1 - tl.program_id(0) % tiles
    group = tl.program_id(0) // tiles
    if portions is None:
        batch = group // GROUPS
        group = group % GROUPS
        position, begin, end = _seen(cache_position, batch, True, tokens, capacity, WINDOW)
        opens = True
    else:
        place = tl.program_id(1)
        portion, parts, ends = _parts(
            cache_position, sequences, portions, tokens, capacity, WINDOW, ENTRIES, SEQUENCES
        )  # fmt: skip
        batch = tl.sum((ends <= place).to(tl.int32), 0)
        if batch >= sequences:
            return
        number = place - tl.sum(tl.where(tl.arange(0, SEQUENCES) < batch, parts, 0), 0)
        position, begin, end = _seen(cache_position, batch, True, tokens, capacity, WINDOW)
        begin += number * portion
        end = tl.minimum(begin + portion, end)
        opens = number == 0

    row = tile * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    token, head = row // PER_GROUP, group * PER_GROUP + row % PER_GROUP
    last = position + token  # that a row sees
    end = tl.minimum(end, position + (tl.minimum((tile + 1) * ROWS, rows) - 1) // PER_GROUP + 1)
    if WINDOW:
        begin = tl.maximum(begin, position + tile * ROWS // PER_GROUP + 1 - WINDOW)

    d, v = tl.arange(0, D_TILE), tl.arange(0, V_TILE)
    line = (batch.to(tl.int64) * HEADS + head) * tokens + token
    q = tl.load(query + line[:, None] * D + d, mask=(inside & (begin < end))[:, None] & (d < D), other=0.0)
    cached = (batch.to(tl.int64) * GROUPS + group) * capacity
    to_exponent = scale * LOG2E

    largest = tl.full((ROWS,), -1e30, tl.float32)  # finite, so that a row that sees nothing yet makes no inf - inf
    total = tl.zeros((ROWS,), tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + head, mask=inside, other=0.0).to(tl.float32) * LOG2E
        largest = tl.where(opens, tl.maximum(sink, largest), largest)
        total = tl.where(opens, 1.0, total)
    average = tl.zeros((ROWS, V_TILE), tl.float32)
    for first in range(begin, end, ENTRIES):
        entry = tl.arange(0, ENTRIES)
        written = (first + entry < end)[:, None]  # beyond may be NaN, which a weight of 0 would not hide
        start = cached + first
        k = tl.load(key + start * D + (entry[:, None] * D + d), mask=written & (d < D), other=0.0)
        scores = tl.dot(q, k.T)
        if softcap is not None:  # tanh, which has no instruction of its own everywhere
            grown = tl.exp2(scores * (2.0 * to_exponent / softcap))
            scores = (softcap * LOG2E) * (1.0 - 2.0 / (grown + 1.0))
        else:
            scores = scores * to_exponent
        visible = (first + entry <= last[:, None]) & (first + entry < end)
        if WINDOW:
            visible &= first + entry > last[:, None] - WINDOW
        scores = tl.where(visible, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        held = tl.load(value + start * V + (entry[:, None] * V + v), mask=written & (v < V), other=0.0)
        average = tl.dot(weights.to(held.dtype), held, average * shrink[:, None])
        largest = larger

    nothing = total == 0.0  # NaN is not nothing
    total = tl.where(nothing, 1.0, total)
    average = average / total[:, None]
    if portions is not None:
        line = (place.to(tl.int64) * GROUPS + group) * rows + row
        tl.store(logsum + line, tl.where(nothing, float("-inf"), largest + tl.log2(total)), mask=inside)
        inside &= ~nothing
    tl.store(
        mixed + line[:, None] * V + v, average.to(mixed.dtype.element_ty), mask=inside[:, None] & (v < V)
    )  # fmt: skip


@triton.jit
def _join(
    mixed: tl.tensor, logsum: tl.tensor, output: tl.tensor, cache_position: tl.tensor,
    tokens: tl.tensor, capacity: tl.tensor, sequences: tl.tensor, portions: tl.tensor,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, V: tl.constexpr, WINDOW: tl.constexpr, SEQUENCES: tl.constexpr,
    ENTRIES: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Grid: B * Hq * S, tiles of V. Averages what a sequence's parts found by their sums of weights."""
    PER_GROUP: tl.constexpr = HEADS // GROUPS
    line = tl.program_id(0)
    token, head, batch = line % tokens, line // tokens % HEADS, line // tokens // HEADS
    row, group = token * PER_GROUP + head % PER_GROUP, head // PER_GROUP
    _, parts, _ = _parts(cache_position, sequences, portions, tokens, capacity, WINDOW, ENTRIES, SEQUENCES)
    sequence = tl.arange(0, SEQUENCES)
    before = tl.sum(tl.where(sequence < batch, parts, 0), 0)
    count = tl.sum(tl.where(sequence == batch, parts, 0), 0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)

    largest, total = -1e30, 0.0
    average = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)
        place = ((before + part).to(tl.int64) * GROUPS + group) * (tokens * PER_GROUP) + row
        sums = tl.load(logsum + place, mask=part < count, other=float("-inf"))
        larger = tl.maximum(largest, tl.max(sums, 0))
        weight = tl.exp2(sums - larger)
        shrink = tl.exp2(largest - larger)
        found = (weight > 0.0) | (sums != sums)  # only there something was written; NaN is not to be hidden
        each = tl.load(
            mixed + place[:, None] * V + channel, mask=found[:, None] & (channel < V), other=0.0
        )  # fmt: skip
        total = total * shrink + tl.sum(weight, 0)
        average = average * shrink + tl.sum(weight[:, None] * each, 0)
        largest = larger
    average = average / tl.where(total == 0.0, 1.0, total)
    tl.store(output + line.to(tl.int64) * V + channel, average.to(output.dtype.element_ty), mask=channel < V)


def attend_constants(shape: GroupedQueryShape, tiles: Tiles, cut: bool) -> dict[str, Any]:
    """What `_attend` is compiled for. cut: into parts"""
    absent = {"sinks": not shape.sinks, "softcap": not shape.softcap}
    absent |= dict.fromkeys(("logsum", "sequences", "portions"), not cut)
    return {
        "HEADS": shape.heads,
        "GROUPS": shape.groups,
        "D": shape.channels,
        "V": shape.values,
        "D_TILE": max(16, triton.next_power_of_2(shape.channels)),  # what a matrix instruction takes at least
        "V_TILE": max(16, triton.next_power_of_2(shape.values)),
        "WINDOW": shape.window,
        "SEQUENCES": MOST_SEQUENCES,
        "ROWS": tiles.rows,
        "ENTRIES": tiles.entries,
    } | {name: None for name, left_out in absent.items() if left_out}


def join_constants(shape: GroupedQueryShape, tiles: Tiles) -> dict[str, Any]:
    """What `_join` is compiled for, for parts that programs with these tiles left."""
    return {
        "HEADS": shape.heads,
        "GROUPS": shape.groups,
        "V": shape.values,
        "WINDOW": shape.window,
        "SEQUENCES": MOST_SEQUENCES,
        "ENTRIES": tiles.entries,
        "PARTS": JOINED_PARTS,
        "CHANNELS": JOINED_CHANNELS,
    }


def sources(shape: GroupedQueryShape, sm: int) -> dict[str, KernelSource]:
    """By what they are for: "whole" takes all entries of a sequence; "split" leaves parts to "join"."""
    kind = f"*{shape.dtype}"
    types = dict.fromkeys(("query", "key", "value", "sinks", "output"), kind)
    types |= {"cache_position": "*i64", "logsum": "*fp32", "scale": "fp32", "softcap": "fp32"}
    types |= dict.fromkeys(("tokens", "capacity", "sequences", "portions"), "i32")
    found = {}
    for name, tiles in tiles_for(shape, sm).items():
        for way, cut in (("whole", False), ("split", True)):
            constants = attend_constants(shape, tiles, cut)
            written = types | {"mixed": "*fp32" if cut else kind}
            found[f"{way}_{name}"] = KernelSource(_attend, written, constants, tiles.warps, tiles.stages)
        found[f"join_{name}"] = KernelSource(_join, types | {"mixed": "*fp32"}, join_constants(shape, tiles))
    return found


def layout_for(shape: GroupedQueryShape, sm: int) -> GroupedQueryLaunch:
    tiles = tiles_for(shape, sm)
    return GroupedQueryLaunch(tiles["few"].rows, tiles["many"].rows, JOINED_CHANNELS)
