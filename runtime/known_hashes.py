"""Hashes of files that were read before: what was verified once is not read again while nobody has touched it.

Kept in the user's own cache, one small file for each folder. A file is taken for the same while device, inode, size and
both times are; the time of its last change is set by the kernel alone. Whoever does not trust that, as on a network's
file system or a failing disk, reads everything again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from llmc.errors import InputError
from llmc.files import TICK_NS, read_json, stamp

_MOST_BYTES = 1 << 26  # of 100,000 files


class KnownHashes:
    """What is known about the files of one folder.

    Args:
        folder: whose files they are
        forget: whether to begin with nothing
    """

    def __init__(self, folder: Path, forget: bool = False) -> None:
        self.place = _cache() / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.json"
        self._known = {} if forget else _read(self.place)
        self._used: dict[str, list[str]] = {}

    def get(self, name: str, path: Path) -> str | None:
        """The SHA-256 of a file; None: it has to be read."""
        found = self._known.get(name)
        if found is None or found[0] != _key(stamp(path)):
            return None
        self._used[name] = found
        return found[1]

    def put(self, name: str, before: tuple[int, ...], began_ns: int, path: Path, sha256: str) -> None:
        """Remembers what was read of a file whose stamp was `before`, unless it changed since, or just before the
        reading began: a second change, within the same tick of the clock and behind the reader, would not show.
        """
        if stamp(path) == before and began_ns - before[-1] > TICK_NS:
            self._used[name] = [_key(before), sha256]

    def keep(self) -> None:
        """Writes down what was used. Where that cannot be, everything is read again the next time, and no more."""
        temporary = self.place.with_name(f"{self.place.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            self.place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._used), encoding="utf-8")
            temporary.replace(self.place)


def _key(found: tuple[int, ...]) -> str:
    return " ".join(map(str, found))


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if Path(given).is_absolute() else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111
    return home / "llmc" / "verified"


def _read(place: Path) -> dict[str, list[str]]:
    """What is there; nothing where it was damaged, or where somebody else could have written it."""
    try:
        if place.stat().st_uid != os.getuid():
            return {}
        found = read_json(place, _MOST_BYTES)
    except (OSError, InputError):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, list) and len(each) == 2}
