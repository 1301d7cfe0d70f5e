"""Rows of a grouped product: each expert's choices in tiles of their own, found without a word to the host.

Token n's choice k has the number n K + k. A tile belongs to one expert and holds up to `rows` of its choices in
ascending order; only the last tile of an expert is not full. How many tiles there are depends on the routing, but not
by much, so whoever launches counts on the most there can be, and tiles too many have no expert.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from llmc.runtime.plugins.mixture_of_experts import MANY

CHOICES = 4096  # looked at in one go
WARPS = 8


@triton.jit
def group_tokens(
    index: tl.tensor, tile_choices: tl.tensor, tile_expert: tl.tensor,
    choices: tl.tensor, tiles: tl.tensor,
    EXPERTS: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr, CHOICES: tl.constexpr,
) -> None:  # fmt: skip
    """One program per expert. Each counts the choices of all experts: integers, whose order of adding is no matter.

    A histogram for every program is cheaper than a launch for a common one.
    """
    expert = tl.program_id(0)
    place = tl.arange(0, CHOICES)
    counts = tl.zeros((BINS,), tl.int32)
    for start in range(0, choices, CHOICES):
        inside = start + place < choices
        number = tl.load(index + start + place, mask=inside, other=-1)
        inside = (number >= 0) & (number < EXPERTS)
        counts += tl.histogram(tl.where(inside, number, 0).to(tl.int32), BINS, mask=inside)
    bins = tl.arange(0, BINS)
    needed = (counts + ROWS - 1) // ROWS
    first = tl.sum(tl.where(bins < expert, needed, 0))
    mine = tl.sum(tl.where(bins == expert, needed, 0))
    # In order of their number: the running count of matches is a choice's row.
    row = first * ROWS
    for start in range(0, choices, CHOICES):
        inside = start + place < choices
        match = tl.load(index + start + place, mask=inside, other=-1) == expert
        before = tl.cumsum(match.to(tl.int32), 0)
        tl.store(tile_choices + row + before - 1, start + place, mask=match)
        row += tl.sum(match.to(tl.int32))
    pad = tl.arange(0, ROWS)
    tl.store(tile_choices + row + pad, tl.full((ROWS,), choices, tl.int32), mask=row + pad < (first + mine) * ROWS)
    for tile in range(first, first + mine):
        tl.store(tile_expert + tile, expert)
    if expert == EXPERTS - 1:
        for tile in range(first + mine, tiles):
            tl.store(tile_expert + tile, -1)


def group_constants(experts: int, rows: int) -> dict[str, Any]:
    """What `group_tokens` is compiled for."""
    choices = CHOICES if rows == MANY else min(CHOICES, triton.next_power_of_2(rows // 2 * experts))
    return {"EXPERTS": experts, "BINS": max(2, triton.next_power_of_2(experts)), "ROWS": rows, "CHOICES": choices}
