"""How the kernels of latent_attention.py are laid out over a GPU: tiles, splits, grids and workspace."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.convert.kernels.ahead_of_time import ALIGNMENT

MOST_SPLITS = 128  # the second kernel holds as many sums at once
JOINED_SPLITS = 16  # of which it reads the values together
LARGEST_RANK, LARGEST_ROPE = 512, 64  # for which the tiles below fit


@dataclass(frozen=True)
class LatentShape:
    """What a model fixes: Hq, R and P; `dtype` "bf16" or "fp16" of query, output and, unless `float8`, of the cache."""

    heads: int
    rank: int
    rope: int
    dtype: str
    float8: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.rank <= LARGEST_RANK and 0 < self.rope <= LARGEST_ROPE and self.heads > 0):
            raise ValueError(f"{self}: at most {LARGEST_RANK} + {LARGEST_ROPE} channels")
        if self.dtype not in ("bf16", "fp16"):
            raise ValueError(f"{self}: dtype is bf16 or fp16")


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
    120: Tiles(32, 16, 4, 3),
}
# Codes are unpacked into registers, which leaves room for half as many rows.
_FLOAT8 = {
    80: Tiles(32, 32, 8, 3),
    86: Tiles(32, 32, 8, 3),
    89: Tiles(32, 32, 8, 3),
    90: Tiles(32, 32, 8, 3),
    100: Tiles(32, 32, 8, 3),
    120: Tiles(32, 32, 8, 3),
}
# More rows than heads would leave some empty when one token is decoded; few rows fit everywhere.
FEW_HEADS = 16
_FEW, _FEW_FLOAT8 = Tiles(FEW_HEADS, 32, 4, 3), Tiles(FEW_HEADS, 32, 8, 3)
SMS = tuple(_FLOAT)


def tiles_for(shape: LatentShape, sm: int) -> Tiles:
    if sm not in SMS:
        raise ValueError(f"SM {sm}: the kernels of latent attention are for SM {', '.join(map(str, SMS))}")
    if shape.heads <= FEW_HEADS:
        return _FEW_FLOAT8 if shape.float8 else _FEW
    return (_FLOAT8 if shape.float8 else _FLOAT)[sm]


@dataclass(frozen=True)
class Plan:
    """One launch for a query [B, Hq, S, R + P] and caches of capacity T."""

    shape: LatentShape
    tiles: Tiles
    batch: int
    tokens: int
    splits: int

    @property
    def rows(self) -> int:
        return self.tokens * self.shape.heads

    @property
    def grid(self) -> tuple[int, int, int]:
        return -(-self.rows // self.tiles.rows), self.splits, self.batch

    def join_grid(self, channels: int) -> tuple[int, int, int]:
        """Of the second kernel, which takes as many channels a program; needed for more than one split."""
        return self.rows, -(-self.shape.rank // channels), self.batch

    @property
    def mixed_bytes(self) -> int:
        """Of the splits' values [B, splits, S * Hq, R] float32, filled up so that what follows is aligned."""
        return -(-self._sums_bytes * self.shape.rank // ALIGNMENT) * ALIGNMENT

    @property
    def workspace_bytes(self) -> int:
        """Of the values and, behind them, of the logarithms [B, splits, S * Hq] float32."""
        return self.mixed_bytes + self._sums_bytes

    @property
    def _sums_bytes(self) -> int:
        return 4 * self.batch * self.splits * self.rows if self.splits > 1 else 0


def plan(shape: LatentShape, sm: int, multiprocessors: int, batch: int, tokens: int, capacity: int) -> Plan:
    """As many splits as still run at once: a program fills a multiprocessor, and every split costs workspace traffic.

    The splits are even parts of the entries that there are, whatever the capacity: it only bounds their number.
    """
    if max(tokens * shape.heads, capacity) * (shape.rank + shape.rope) >= 2**31:
        raise ValueError(f"{tokens} tokens, capacity {capacity}: offsets inside of a sequence must fit 32 bits")
    tiles = tiles_for(shape, sm)
    programs = batch * -(-tokens * shape.heads // tiles.rows)
    splits = max(1, min(multiprocessors // programs, -(-capacity // tiles.entries), MOST_SPLITS))
    return Plan(shape, tiles, batch, tokens, splits)
