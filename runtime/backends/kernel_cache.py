"""Kernels that a library compiled on this machine, kept for the next time in llmc's folder of the user's cache
($XDG_CACHE_HOME, ~/.cache).

They are programs, and the library that loads them checks nothing: only what this user wrote into a folder that nobody
else can write to is read, and only whole. Everything else is as if it were not there, which costs time, not more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from llmc.errors import InputError
from llmc.files import open_regular

_DIGEST = hashlib.sha256().digest_size  # stands in front of the content
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmc" / "kernels"


def read(name: str) -> bytes | None:
    """What was kept under this name; None for nothing that can be trusted."""
    try:
        if not _is_ours(folder()) or (folder() / name).is_symlink():
            return None
        with open_regular(folder() / name) as file:
            if not _is_only_ours(os.fstat(file.fileno())):
                return None
            digest, content = file.read(_DIGEST), file.read()
    except (OSError, InputError):
        return None
    return content if hashlib.sha256(content).digest() == digest else None


def write(name: str, content: bytes) -> None:
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        for each in (folder().parent, folder()):
            if not hasattr(os, "geteuid") or each.stat().st_uid == os.geteuid():
                each.chmod(0o700)
        if not _is_ours(folder()):
            return
        new = folder() / f"{name}.{os.getpid()}"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        new.replace(folder() / name)


def _is_ours(path: Path) -> bool:
    """Whether nobody else can put files into it, or it into another's place."""
    return all(_is_only_ours(each.lstat()) and stat.S_ISDIR(each.lstat().st_mode) for each in (path.parent, path))


def _is_only_ours(status: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):  # Windows, where the user's folders are the user's
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS
