"""The tiles of expanded_latent_attention.py on each generation of GPU."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.runtime.plugins.expanded_latent_attention import ExpandedShape

BLOCK = 128  # entries that are expanded together; a multiple of those that are attended to together
MOST_CHANNELS = 256  # of a key, with the rotated ones, or a value, for which the tiles below fit


@dataclass(frozen=True)
class Tiles:
    """Of a program that attends: tokens, and entries at a time; warps, and copies in flight plus one.

    Attributes:
        expand_stages: copies in flight of a program that expands, plus one
    """

    tokens: int
    entries: int
    warps: int
    stages: int
    expand_stages: int


# By the channels that a value's tile has room for: 128 for DeepSeek, 256 for GLM-4.7-Flash. Chosen by what the machine
# code says (ci/bench/kernels.py), not tuned on GPUs: none spills registers or passes the limit of shared memory.
_LARGE, _SMALL = (80, 90, 100, 103), (86, 89, 120, 121)  # by shared memory
_TILES = {
    128: dict.fromkeys(_LARGE, Tiles(128, 64, 8, 2, 3)) | dict.fromkeys(_SMALL, Tiles(64, 32, 4, 2, 2)),
    256: dict.fromkeys(_LARGE, Tiles(64, 64, 8, 2, 3)) | dict.fromkeys(_SMALL, Tiles(32, 64, 4, 2, 2)),
}
_TILES[128][80], _TILES[128][90] = Tiles(64, 64, 4, 2, 3), Tiles(128, 64, 8, 3, 3)
_TILES[256] |= dict.fromkeys((120, 121), Tiles(32, 32, 4, 2, 2))
SMS = tuple(sorted(_LARGE + _SMALL))


def tiles_for(shape: ExpandedShape, sm: int) -> Tiles:
    channels = max(shape.nope + shape.rope, shape.values)
    if not (0 < channels <= MOST_CHANNELS and shape.heads > 0 and shape.rank > 0):
        raise ValueError(f"{shape}: at most {MOST_CHANNELS} channels")
    if sm not in SMS:
        raise ValueError(f"SM {sm}: the kernels of expanded attention are for SM {', '.join(map(str, SMS))}")
    return _TILES[128 if shape.nope <= 128 and shape.values <= 128 else 256][sm]


def columns_for(width: int) -> int:
    """Channels of one program that expands: the more the better, as long as none are left over."""
    return 128 if -(-width // 128) * 2 == -(-width // 64) else 64
