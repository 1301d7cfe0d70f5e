"""Stages of a build, content-addressed: a stage whose key is unchanged is not run again.

A key is a hash of everything that decides a stage's result: its inputs (by content), its part of the recipe, its
source code and the packages it stands on. Nothing in it depends on where or when the build runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OTHER_ROOMS = ("convert/", "quant/", "runtime/", "recipes/")


def key_of(*parts: Any) -> str:
    """A hash of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_version(room: str, without: tuple[str, ...] = ()) -> str:
    """A hash of the Python sources of a room (`convert`), apart from the folders in `without`."""
    module = importlib.import_module("llmc" if room == "llmc" else f"llmc.{room}")
    assert module.__file__
    root, digest = Path(module.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        # An installed llmc holds the other rooms as folders of its own.
        if not name.startswith(_OTHER_ROOMS if room == "llmc" else without):
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Distribution → version of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Stages:
    """Results of finished stages, one JSON file each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, key: str, work: Callable[[], Any]) -> Any:
        """The JSON-able result of `work`, from the last run if that had the same key."""
        path = self.directory / f"{name}.json"
        if path.exists() and (record := json.loads(path.read_text("utf-8")))["key"] == key:
            return record["result"]
        path.unlink(missing_ok=True)  # what the stage writes is no longer what the record says
        result = work()
        write_json(path, {"key": key, "result": result})
        # As read back, so that a resumed build goes on with the very same values.
        return json.loads(path.read_text("utf-8"))["result"]

    def forget_all_but(self, names: set[str]) -> None:
        for path in self.directory.glob("*.json"):
            if path.stem not in names:
                path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Under its name only when complete."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
