"""Files that survive a power cut, and records that vouch for them.

A record is written once the files it speaks of are on the disk for good, and holds their sizes and hashes, and one of
itself. Whatever does not agree with its record is damaged, and is made again instead of being trusted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from llmc.contracts.layer_record import ScratchFile
from llmc.contracts.part import File, Part, checked
from llmc.errors import MachineError
from llmc.files import TICK_NS, stamp


def _xxh3() -> Any:
    import xxhash  # not part of the base install, which never builds

    return xxhash.xxh3_128()


Sealed = TypeVar("Sealed", bound=File | ScratchFile)
_Record = TypeVar("_Record", bound=Part)
# xxh3, against accidents: activations of many GB are hashed after every layer, in a third of the time of sha256.
_ALGORITHMS: dict[type, tuple[str, Callable[[], Any]]] = {
    File: ("sha256", hashlib.sha256),
    ScratchFile: ("xxh3", _xxh3),
}
_described: dict[tuple[Path, str], tuple[tuple[int, ...], str]] = {}  # file, algorithm → its stamp and its hash


class Damaged(Exception):
    """A record that does not say any more what was written into it."""


def no_space(path: Path, error: OSError) -> Exception:
    """A MachineError where the disk is full, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError(f"{path}: no space left on the disk; free some and build again, finished layers are kept")
    return error


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems
            raise no_space(path, error) from error
    finally:
        os.close(file)


def describe(path: Path, kind: type[Sealed]) -> Sealed:
    """Size and hash of a file; one that has not changed since it was described is not read again."""
    before, now = stamp(path), time.time_ns()
    algorithm, new = _ALGORITHMS[kind]
    known = _described.get((path, algorithm))
    if known is None or known[0] != before:
        with path.open("rb") as file:
            known = before, hashlib.file_digest(file, new).hexdigest()
        if now - before[-1] > TICK_NS:
            _described[path, algorithm] = known
    return checked(kind, {algorithm: known[1], "bytes": before[2]}, str(path))


def seal(folder: Path, names: Iterable[str], kind: type[Sealed]) -> dict[str, Sealed]:
    """Relative name → size and hash of files in `folder`, which are on the disk for good from then on."""
    sealed: dict[str, Sealed] = {}
    folders = {folder}
    for name in names:
        sync(folder / name)
        folders.add((folder / name).parent)
        sealed[name] = describe(folder / name, kind)
    for each in sorted(folders):
        sync(each)
    return sealed


def damage(folder: Path, sealed: Mapping[str, File] | Mapping[str, ScratchFile]) -> str | None:
    """What is wrong with the first file that is not as it was sealed; None: nothing."""
    for name, entry in sealed.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                return f"{name} has {size:,} of {entry.bytes:,} bytes"
            if describe(path, type(entry)) != entry:
                return f"{name} holds other bytes than were written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def write_json(path: Path, value: object) -> None:
    """Under its name only when complete and on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise no_space(path, error) from error
    sync(path.parent)


def write_record(path: Path, record: Any) -> None:
    write_json(path, {"sha256": _hash_of(record), "record": record})


def read_record(path: Path) -> Any:
    """What `write_record` wrote; None where there is no file. Damaged if it says something else by now."""
    try:
        found = json.loads(path.read_bytes())
        if found["sha256"] == _hash_of(found["record"]):
            return found["record"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise Damaged(f"{path.name} is {'damaged' if path.stat().st_size else 'empty'}")


def whole_records(
    paths: Iterable[Path], kind: type[_Record], damaged: Callable[[_Record], str | None]
) -> tuple[list[_Record], str | None]:
    """Records up to the first that is missing or damaged, or whose files `damaged` finds so; and what is damaged."""
    records = list[_Record]()
    for path in paths:
        try:
            read = read_record(path)
            record = None if read is None else kind.model_validate(read)
            found = record and damaged(record)
        except Damaged as error:
            return records, str(error)
        if record is None or found:
            return records, found or None
        records.append(record)
    return records, None


def _hash_of(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
