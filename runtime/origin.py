"""The files beside a model that say how it is spoken to (tokenizer, templates, settings), for those who read them: an
artifact has those that its manifest lists, a checkpoint those that lie in its folder, and perhaps some that were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmc.errors import InputError
from llmc.files import parse_json, read_regular
from llmc.runtime.artifact import Artifact


@dataclass(frozen=True)
class Completed:
    """A checkpoint's folder, with files that were made in place of those that it lacks: name → where that lies."""

    path: Path
    made: Mapping[str, Path]


Origin = Artifact | Path | Completed


def where(origin: Origin) -> Path:
    """For messages."""
    return origin if isinstance(origin, Path) else origin.path


def lies(origin: Origin, name: str) -> Path:
    """For libraries that open a file themselves."""
    return origin.made.get(name, origin.path / name) if isinstance(origin, Completed) else where(origin) / name


def read(origin: Origin, name: str, limit: int) -> bytes | None:
    """A file of at most `limit` bytes; None where there is none. InputError for one that cannot be trusted or read."""
    if isinstance(origin, Artifact):
        return origin.read(name, limit) if name in origin.files else None
    path = lies(origin, name)
    return read_regular(path, limit) if path.exists() else None


def read_json(origin: Origin, name: str, limit: int) -> dict[str, Any]:
    """The same of a JSON object, an empty one where there is no such file."""
    data = read(origin, name, limit)
    try:
        value = {} if data is None else parse_json(data, infinity=name == "config.json")
    except ValueError as error:
        raise InputError(f"{where(origin) / name}: broken ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{where(origin) / name}: broken, no JSON object; download it again")
    return value


def names(origin: Origin, folder: str) -> list[str]:
    """Of the files in a folder, in order: `folder/file`."""
    if isinstance(origin, Artifact):
        return sorted(name for name in origin.files if PurePosixPath(name).parent.as_posix() == folder)
    return sorted(f"{folder}/{path.name}" for path in (where(origin) / folder).glob("*") if path.is_file())
