"""Files that come from somebody else (a checkpoint, an artifact): only regular ones are opened, and none is read that
is larger than it may be.

Opening a FIFO waits for whoever writes into it, a device has no end, and a number of a million digits keeps a processor
busy for hours. None of them needs more than a line in a config.json or a link in a folder.

A leaf module: every room may import it.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from llmc.errors import InputError

# Of JSON: tensors have three brackets and seven commas, so this is a header of 400,000 of them.
_MAX_ITEMS = 4_000_000
_MAX_WIDE_BYTES = 64 << 20  # of text beyond ASCII, which takes up to four times as much memory
_MAX_DEPTH = 64
_MAX_DIGITS = 64  # tokenizers say "no limit" as 1000000000000000019884624838656
# Two changes within one tick of the kernel's clock leave the same time of change.
TICK_NS = 20_000_000
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path) -> BufferedReader:
    """The file, to be read; a link is followed. InputError when it is missing, cannot be read, or is something else
    than a regular file; never waits.
    """
    try:
        _require_regular(path, path.stat())  # opening alone does something to some devices
        flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
        descriptor = os.open(path, flags)
        try:
            _require_regular(path, os.fstat(descriptor))  # it may have been replaced meanwhile
            if hasattr(os, "pread"):
                os.pread(descriptor, 1, 0)  # /proc/kmsg is said to be regular, and has nothing to read
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # NUL, or a character that file names cannot have
        raise InputError(f"{str(path)!r}: not the name of a file ({error})") from error


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; the last number cannot be set by anybody."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_regular(path: Path, limit: int) -> bytes:
    """All of a file of at most `limit` bytes; InputError as `open_regular`, and for a larger one."""
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            large = size > limit
            data = b"" if large else file.read(size + 1)  # not the limit, which would be allocated at once
            if len(data) > size:  # it grows, or does not tell its size
                data += file.read(limit + 1 - len(data))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if large or len(data) > limit:
        raise InputError(f"{path}: larger than the {limit:,} bytes that such a file may have")
    return data


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes; InputError for anything else."""
    return json_object(path, read_regular(path, limit))


def json_object(path: Path, data: bytes, infinity: bool = False) -> dict[str, Any]:
    """A JSON object out of the bytes of `path`, which errors name; see `parse_json`."""
    try:
        value = parse_json(data, infinity)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def parse_json(data: bytes, infinity: bool = False) -> Any:
    """The value, when it is JSON that means one thing: ValueError for a key that is there twice, NaN and infinity, half
    a character, and for what would take long or much memory (deep nesting, very long numbers, millions of items).

    With `infinity`, `Infinity` is one, as Python writes and reads it.
    """
    count_items(data)
    if len(data) > _MAX_WIDE_BYTES and not data.isascii():
        raise ValueError(f"more than {_MAX_WIDE_BYTES:,} bytes with characters beyond ASCII")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_constant if infinity else _finite,
        )
    except RecursionError:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep") from None
    _check_values(value)
    return value


def count_items(data: bytes) -> int:
    """At most how many items some JSON has; ValueError for more than fit into memory."""
    items = sum(map(data.count, b",[{"))
    if items > _MAX_ITEMS:
        raise ValueError(f"more than {_MAX_ITEMS:,} items")
    return items


def leads_outside(path: Path, *folders: Path) -> bool:
    """Whether `path` is a link that ends outside `folders`, by default the one it is in: a copy of it might be a copy
    of anything on this machine. What a hub's cache keeps for one of them counts as inside.
    """
    try:
        target, homes = path.resolve(strict=True), [each.resolve(strict=True) for each in folders or (path.parent,)]
    except (OSError, RuntimeError, ValueError):  # nothing there, a circle of links, no name
        return True
    return not any(target.is_relative_to(home) or is_blob_of(home, target) for home in homes)


def is_blob_of(folder: Path, target: Path) -> bool:
    """Whether `target` is where a hub's cache keeps a file of the snapshot that `folder` is, or is in; both without
    links.

    Snapshots hold links into the `blobs` of their repository, and these may be links into those of the whole cache:
    there files have the hash of their content for a name, which nobody knows who does not know the content.

        CACHE/models--org--name/snapshots/COMMIT/model.onnx → ../../blobs/HASH [→ ../../blobs/HA/HASH]
    """
    name = target.name
    for snapshot in (folder, *folder.parents):
        if snapshot.parent.name == "snapshots":
            repository = snapshot.parent.parent
            own = target.parent == repository / "blobs" and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name)
            shared = target.parent == repository.parent / "blobs" / name[:2] and re.fullmatch("[0-9a-f]{64}", name)
            return bool(own or shared)
    return False


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise InputError(f"{path}: is {kind}, not a file; put the file itself in its place")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 1000 else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _constant(text: str) -> float:
    return math.inf if text == "Infinity" else _finite(text)


def _check_values(value: Any) -> None:
    """Without recursion, since depth is one of the things that is checked."""
    level, depth = [value], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str) and not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError:
                    raise ValueError("text with half a character (a lone surrogate)") from None
        level, depth = below, depth + 1
