"""An image as a vision tower is given it: tiles of one size, normalized.

It is cut as InternVL does it (Chen et al. 2024, section 3.3): resized to the grid of tiles whose shape is nearest
to its own, and behind them, where there are several, all of it again as one more tile. Pillow, of the extra
`images`, opens files and resizes.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError, MachineError
from llmc.extras import install
from llmc.files import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from llmc.contracts.images import ImagesRecord

Image: TypeAlias = Any
"""A file's path, an array of uint8 [height, width, 3], or an image of Pillow."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_MOST_BYTES, _MOST_PIXELS = 1 << 28, 89_478_485  # Pillow warns of files with more


def open_image(image: Image) -> Picture:
    """The first picture of a file, or the one that is given, in red, green and blue; InputError for what is none."""
    try:
        from PIL import Image as pillow
    except ImportError as error:
        raise MachineError(f"images need Pillow, which is not installed; {install('PIL')}") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            shape = " x ".join(map(str, image.shape)) or "a single number"
            raise InputError(f"an image is an array of {image.dtype}, {shape}; it has to be uint8 [height, width, 3]")
        return pillow.fromarray(image)
    if isinstance(image, pillow.Image):
        return _in_colors(image, "an image")
    if not isinstance(image, (str, os.PathLike)):
        raise InputError(f"an image cannot be of type {type(image).__name__}; give a path or an array of uint8")
    path = Path(os.fspath(image))
    data = read_regular(path, _MOST_BYTES)
    bombs = (pillow.DecompressionBombWarning, pillow.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", bombs[0])
            return _in_colors(pillow.open(io.BytesIO(data), formats=_FORMATS), str(path))
    except bombs as error:
        raise InputError(f"{path}: has more than {_MOST_PIXELS:,} pixels; make it smaller") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's readers end in many ways with a damaged file
        kinds = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
        raise InputError(f"{path}: no image that can be read; give a {kinds} file that is whole") from error


def _in_colors(picture: Picture, name: str) -> Picture:
    if picture.width * picture.height > _MOST_PIXELS:
        raise InputError(f"{name}: has more than {_MOST_PIXELS:,} pixels; make it smaller")
    return picture.convert("RGB")


def tiles(picture: Picture, record: ImagesRecord) -> NDArray[np.float32]:
    """[N, 3, side, side]: the grid's tiles line by line, then the thumbnail unless the grid is a single tile."""
    from PIL.Image import Resampling

    side = record.tile_size
    columns, rows = grid(picture.width, picture.height, record)

    def resized(width: int, height: int) -> NDArray[np.uint8]:
        return np.asarray(picture.resize((width, height), Resampling.BICUBIC))

    cut = resized(columns * side, rows * side).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    found = cut.reshape(rows * columns, side, side, 3)
    if rows * columns > 1:
        found = np.concatenate([found, resized(side, side)[None]])
    mean, deviation = (np.array(values, np.float32) for values in (record.mean, record.deviation))
    normalized = (found.astype(np.float32) / np.float32(255) - mean) / deviation
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2), np.float32)


def grid(width: int, height: int, record: ImagesRecord) -> tuple[int, int]:
    """Columns and rows. Of grids of one shape, the larger is taken if the image has more than half its pixels."""
    most, wanted, best, nearest = record.most_tiles, width / height, (1, 1), float("inf")
    shapes = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    for columns, rows in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)):
        difference = abs(wanted - columns / rows)
        enough = width * height > 0.5 * record.tile_size**2 * columns * rows
        if difference < nearest or (difference == nearest and enough):
            best, nearest = (columns, rows), difference
    return best


def digest(pixels: NDArray[np.float32]) -> int:
    """A number that stands for these tiles and no others."""
    return int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:16], "big")
