"""Files of text that may be compressed: what their names end with says how."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from llmc.errors import InputError, MachineError
from llmc.extras import install
from llmc.files import open_regular, read_regular

_OPEN: dict[str, Callable[[BufferedReader], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = (*_OPEN, ".zst")


def name_inside(path: Path) -> Path:
    """What the file is called when it is unpacked."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def read_unpacked(path: Path, limit: int) -> bytes:
    """All of a file of text, unpacked, at most `limit` bytes; InputError for a damaged or larger one."""
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return read_regular(path, limit)
    with open_regular(path) as packed:
        try:
            with _zstandard(path, packed) if suffix == ".zst" else _OPEN[suffix](packed) as file:
                data: bytes = file.read(limit + 1)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise InputError(f"{path}: cannot be unpacked ({error}); download it again") from error
    if len(data) > limit:
        raise InputError(f"{path}: larger than the {limit:,} bytes that such a file may have, unpacked")
    return data


def _zstandard(path: Path, packed: BufferedReader) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MachineError(f"{path}: pyarrow, which unpacks .zst, is not installed; {install('pyarrow')}") from error
    return pyarrow.CompressedInputStream(packed, "zstd")
