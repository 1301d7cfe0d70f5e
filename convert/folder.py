"""The files in a checkpoint's folder: how they are opened, and which of them travel with the model.

Weights, config and index are read, so they may be links to wherever they are kept. What travels with the model is
copied as it is and gets published: a link that leaves the folder might point to somebody's keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

from llmc import files
from llmc.errors import InputError

# Bytes; several times what the largest model of today has.
JSON_LIMIT = 16 << 20
INDEX_LIMIT = 100_000_000
SIDECAR_LIMIT = 256 << 20


def open_file(path: Path) -> BufferedReader:
    """A file of a checkpoint; InputError for one that cannot be read, or is only a stand-in for what it should be."""
    file = files.open_regular(path)
    try:
        _refuse_stand_in(path, file.read(64))
        file.seek(0)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        raise
    return file


def read_json(path: Path, limit: int = JSON_LIMIT, infinity: bool = False) -> dict[str, Any]:
    """A JSON object, which may have `Infinity` in it if that is said; InputError when the file is missing or holds
    something else.
    """
    try:
        data = files.read_regular(path, limit)
    except InputError as error:
        missing = "" if path.exists() else "; every checkpoint needs it"
        raise InputError(f"{error}{missing}") from error
    _refuse_stand_in(path, data[:64])
    return files.json_object(path, data, infinity)


def require_sidecars(folder: Path, sidecars: Iterable[Path]) -> None:
    """InputError for one that must not be copied into what gets published: a link that leaves the folder, or no file.

    Where all of a checkpoint is links into another folder, that folder is its own: it is where config.json lies.
    """
    homes = (folder, (folder / "config.json").resolve().parent)
    for path in sidecars:
        if files.leads_outside(path, *homes):
            raise InputError(
                f"{path}: leads out of the checkpoint's folder, to {os.path.realpath(path)}, and would be published "
                "with the result; put the file itself in its place, or remove the link"
            )
        open_file(path).close()
        if path.stat().st_size > SIDECAR_LIMIT:
            raise InputError(f"{path}: larger than the {SIDECAR_LIMIT:,} bytes that such a file may have")


def _refuse_stand_in(path: Path, beginning: bytes) -> None:
    """InputError for what git or a browser leaves where a file should be."""
    if beginning.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputError(
            f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in {path.parent}, or download the "
            "model with `hf download`"
        )
    if beginning.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise InputError(
            f"{path}: is a web page about the file, not the file; download it again, from …/resolve/… instead of "
            "…/blob/…, or with `hf download`"
        )
