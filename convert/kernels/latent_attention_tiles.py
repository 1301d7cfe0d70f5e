"""The tiles of latent_attention.py on each generation of GPU."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.runtime.plugins.latent_attention import LatentShape

LARGEST_RANK, LARGEST_ROPE = 512, 64  # for which the tiles below fit


@dataclass(frozen=True)
class Tiles:
    """Of one program: rows of the query and cache entries at a time; warps, and copies in flight plus one. And how many
    programs a multiprocessor holds.
    """

    rows: int
    entries: int
    warps: int
    stages: int
    programs: int = 1


# Chosen by what the machine code says (ci/bench/kernels.py), not tuned on GPUs. A value is [rows, R] float32: 64 rows
# are half of all registers of a multiprocessor, the query stays in shared memory. Each warp has entries of its own
# where there are 8 of them for it; with fewer, several warps compute the same scores. What is spilled to the stack is
# made once for all entries; in their loop, reading it back is less than 7 of 100 instructions.
_SMALL = Tiles(32, 32, 4, 2)  # where a multiprocessor has 99 KiB of shared memory
_FLOAT = {
    80: Tiles(64, 64, 8, 2),
    86: _SMALL,
    89: _SMALL,
    90: Tiles(64, 64, 8, 2),
    100: Tiles(64, 32, 8, 2),
    103: Tiles(64, 32, 8, 2),
    120: _SMALL,
    121: _SMALL,
}
# More rows than heads would leave some empty when one token is decoded.
_MEDIUM = _FLOAT | dict.fromkeys((80, 90, 100, 103), Tiles(32, 64, 8, 2))
# Codes are unpacked into registers, which leaves less room.
_HALVED = Tiles(16, 16, 4, 2, programs=2)
_FLOAT8 = {
    80: Tiles(32, 64, 8, 2),
    86: _HALVED,
    89: _HALVED,
    90: Tiles(64, 64, 8, 2),
    100: Tiles(32, 64, 8, 2),
    103: Tiles(32, 64, 8, 2),
    120: _HALVED,
    121: _HALVED,
}
_MEDIUM_FLOAT8 = _FLOAT8 | {90: Tiles(32, 64, 8, 2)}
MEDIUM_HEADS, FEW_HEADS = 32, 16
_FEW, _FEW_FLOAT8 = Tiles(FEW_HEADS, 32, 4, 3), Tiles(FEW_HEADS, 32, 8, 3)
SMS = tuple(_FLOAT)


def tiles_for(shape: LatentShape, sm: int) -> Tiles:
    if not (0 < shape.rank <= LARGEST_RANK and 0 < shape.rope <= LARGEST_ROPE and shape.heads > 0):
        raise ValueError(f"{shape}: at most {LARGEST_RANK} + {LARGEST_ROPE} channels")
    if sm not in SMS:
        raise ValueError(f"SM {sm}: the kernels of latent attention are for SM {', '.join(map(str, SMS))}")
    if shape.heads <= FEW_HEADS:
        return _FEW_FLOAT8 if shape.float8 else _FEW
    if shape.heads <= MEDIUM_HEADS:
        return (_MEDIUM_FLOAT8 if shape.float8 else _MEDIUM)[sm]
    return (_FLOAT8 if shape.float8 else _FLOAT)[sm]
