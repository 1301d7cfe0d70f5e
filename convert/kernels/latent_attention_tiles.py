"""The tiles of latent_attention.py on each generation of GPU."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.runtime.plugins.latent_attention import LatentShape

LARGEST_RANK, LARGEST_ROPE = 512, 64  # for which the tiles below fit


@dataclass(frozen=True)
class Tiles:
    """Of one program: rows of the query and cache entries at a time; warps, and copies in flight plus one.

    Attributes:
        programs: how many of them a multiprocessor holds
        transposed: whether scores are computed as entries by rows
        recomputes: whether what is the same for all entries is computed for each of their tiles, for want of registers
    """

    rows: int
    entries: int
    warps: int
    stages: int
    programs: int = 1
    transposed: bool = False
    recomputes: bool = False


# Chosen by what the machine code says (ci/bench/kernels.py), not tuned on GPUs. None spills registers or passes the
# limit of shared memory at R = 512 and P = 64: a value is [rows, R] float32, and 64 rows are half of all registers of a
# multiprocessor. The query stays in shared memory.
_FLOAT = {
    80: Tiles(64, 32, 8, 3, transposed=True),
    86: Tiles(32, 32, 4, 2),
    89: Tiles(32, 32, 4, 2),
    90: Tiles(64, 64, 8, 2, recomputes=True),
    100: Tiles(64, 32, 8, 2, recomputes=True),
    103: Tiles(64, 32, 8, 2, recomputes=True),
    120: Tiles(32, 16, 4, 3, transposed=True),
    121: Tiles(32, 16, 4, 3, transposed=True),
}
# Codes are unpacked into registers, as are those of the tile that follows.
_LOW_FLOAT8 = Tiles(32, 16, 4, 3, transposed=True)
_FLOAT8 = {
    80: Tiles(64, 32, 8, 3, transposed=True, recomputes=True),
    86: _LOW_FLOAT8,
    89: _LOW_FLOAT8,
    90: Tiles(64, 32, 8, 3, transposed=True),
    100: Tiles(64, 32, 8, 2, transposed=True),
    103: Tiles(64, 32, 8, 2, transposed=True),
    120: _LOW_FLOAT8,
    121: _LOW_FLOAT8,
}
# More rows than heads would leave some empty when one token is decoded.
MEDIUM_HEADS, FEW_HEADS = 32, 16
_WIDE = (80, 90, 100, 103)
_MEDIUM = _FLOAT | dict.fromkeys(_WIDE, Tiles(32, 64, 8, 2))
_MEDIUM_FLOAT8 = _FLOAT8 | dict.fromkeys(_WIDE, Tiles(32, 16, 4, 3, programs=2, transposed=True))
_FEW, _FEW_FLOAT8 = Tiles(FEW_HEADS, 32, 4, 3), Tiles(FEW_HEADS, 32, 4, 3, transposed=True)
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
