"""The tiles of grouped_query_attention.py on each generation of GPU."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.runtime.plugins.grouped_query_attention import GroupedQueryShape

MOST_CHANNELS = 256  # of a key or a value, for which the tiles below fit


@dataclass(frozen=True)
class Tiles:
    """Of one program: rows of the query and cache entries at a time; warps, and copies in flight plus one."""

    rows: int
    entries: int
    warps: int
    stages: int


# By the channels that a tile has room for. A decoded token has as many rows as a group has heads: 16 is what a matrix
# instruction takes at least. Not tuned on GPUs.
_LARGE, _SMALL = (80, 90, 100, 103), (86, 89, 120, 121)  # by shared memory
_FEW = {
    64: dict.fromkeys(_LARGE, Tiles(16, 128, 4, 3)) | dict.fromkeys(_SMALL, Tiles(16, 64, 4, 3)),
    128: dict.fromkeys(_LARGE, Tiles(16, 64, 4, 3)) | dict.fromkeys(_SMALL, Tiles(16, 32, 4, 3)),
    256: dict.fromkeys(_LARGE, Tiles(16, 32, 4, 3)) | dict.fromkeys(_SMALL, Tiles(16, 16, 4, 3)),
}
_MANY = {
    64: dict.fromkeys(_LARGE, Tiles(128, 64, 8, 3)) | dict.fromkeys(_SMALL, Tiles(128, 64, 8, 2)),
    128: dict.fromkeys(_LARGE, Tiles(128, 64, 8, 3)) | dict.fromkeys(_SMALL, Tiles(64, 32, 4, 2)),
    256: dict.fromkeys(_LARGE, Tiles(64, 64, 8, 2)) | dict.fromkeys(_SMALL, Tiles(64, 32, 8, 2)),
}
# Accumulators are registers before SM 90, and those of larger tiles would spill.
_MANY[128][80], _MANY[256][80] = Tiles(64, 32, 4, 3), Tiles(64, 32, 8, 2)
SMS = tuple(sorted(_LARGE + _SMALL))


def tiles_for(shape: GroupedQueryShape, sm: int) -> dict[str, Tiles]:
    """For "few" rows and for "many"."""
    channels = max(shape.channels, shape.values)
    if not (0 < channels <= MOST_CHANNELS and shape.heads > 0 and shape.heads % shape.groups == 0):
        raise ValueError(f"{shape}: at most {MOST_CHANNELS} channels, and as many heads in each group")
    if sm not in SMS:
        raise ValueError(f"SM {sm}: the kernels of grouped-query attention are for SM {', '.join(map(str, SMS))}")
    room = min(size for size in _FEW if size >= channels)
    return {"few": _FEW[room][sm], "many": _MANY[room][sm]}
