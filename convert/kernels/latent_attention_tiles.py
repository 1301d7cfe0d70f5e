"""The tiles of latent_attention.py on each generation of GPU."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.runtime.plugins.latent_attention import LatentShape

LARGEST_RANK, LARGEST_ROPE = 512, 64  # for which the tiles below fit


@dataclass(frozen=True)
class Tiles:
    """Of one program: rows of the query and cache entries at a time; warps, and copies in flight plus one."""

    rows: int
    entries: int
    warps: int
    stages: int


# Neither spill registers nor pass the limit of shared memory at R = 512 and P = 64; not tuned on GPUs. A value is
# [rows, R] float32: 64 rows are half of all registers of a multiprocessor. The query stays in shared memory.
_FLOAT = {
    80: Tiles(64, 32, 8, 3),
    86: Tiles(32, 16, 4, 3),
    89: Tiles(32, 16, 4, 3),
    90: Tiles(64, 64, 8, 2),
    100: Tiles(64, 32, 8, 2),
    103: Tiles(64, 32, 8, 2),
    120: Tiles(32, 16, 4, 3),
    121: Tiles(32, 16, 4, 3),
}
# Codes are unpacked into registers, which leaves room for half as many rows.
_FLOAT8 = {
    80: Tiles(32, 32, 8, 3),
    86: Tiles(32, 32, 8, 3),
    89: Tiles(32, 32, 8, 3),
    90: Tiles(32, 32, 8, 3),
    100: Tiles(32, 32, 8, 3),
    103: Tiles(32, 32, 8, 3),
    120: Tiles(32, 32, 8, 3),
    121: Tiles(32, 32, 8, 3),
}
# More rows than heads would leave some empty when one token is decoded; few rows fit everywhere.
FEW_HEADS = 16
_FEW, _FEW_FLOAT8 = Tiles(FEW_HEADS, 32, 4, 3), Tiles(FEW_HEADS, 32, 8, 3)
SMS = tuple(_FLOAT)


def tiles_for(shape: LatentShape, sm: int) -> Tiles:
    if not (0 < shape.rank <= LARGEST_RANK and 0 < shape.rope <= LARGEST_ROPE and shape.heads > 0):
        raise ValueError(f"{shape}: at most {LARGEST_RANK} + {LARGEST_ROPE} channels")
    if sm not in SMS:
        raise ValueError(f"SM {sm}: the kernels of latent attention are for SM {', '.join(map(str, SMS))}")
    if shape.heads <= FEW_HEADS:
        return _FEW_FLOAT8 if shape.float8 else _FEW
    return (_FLOAT8 if shape.float8 else _FLOAT)[sm]
