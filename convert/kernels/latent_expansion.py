"""The entries of a cache of latents as keys and values of heads: the first half of expanded_latent_attention.py.

Entries of all sequences lie in one row, block behind block. How long sequences are is known on the GPU alone, so that
programs look for the sequence that their block belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.decoding import decode_float8
from llmc.convert.kernels.expanded_latent_attention_tiles import BLOCK, columns_for, tiles_for
from llmc.runtime.plugins.expanded_latent_attention import ExpandedShape

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
def sequence_of(
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
    sequence, before, total = sequence_of(first_block, cache_position, batch, tokens, capacity, BLOCK, SEQUENCES)
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


def expand_source(shape: ExpandedShape, sm: int, types: Mapping[str, str]) -> KernelSource:
    """The kernel "expand"; `types` of its parameters."""
    registers = 128 if sm // 10 == 10 else None
    return KernelSource(_expand, types, expand_constants(shape), 8, tiles_for(shape, sm).expand_stages, (), registers)
