"""Stages of a build, content-addressed: a stage whose key is unchanged is not run again.

A key is a hash of everything that decides a stage's result: its inputs (by content), its part of the recipe, its
source code and the packages it stands on. Nothing in it depends on where or when the build runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llmc.contracts.part import File, Part
from llmc.quant.durable import Damaged, damage, read_record, seal, write_record

_SOURCES = (".py", ".jinja", ".css")


def key_of(*parts: Any) -> str:
    """A hash of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_version(room: str, without: tuple[str, ...] = ()) -> str:
    """A hash of the sources of a room (`convert`), templates included, apart from the folders in `without`."""
    module = importlib.import_module("llmc" if room == "llmc" else f"llmc.{room}")
    assert module.__file__
    root, digest = Path(module.__file__).parent, hashlib.sha256()
    for path in sorted(root.glob("*" if room == "llmc" else "**/*")):
        if path.suffix not in _SOURCES:
            continue
        name = path.relative_to(root).as_posix()
        if not name.startswith(without):
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def module_version(module: str) -> str:
    """A hash of one module's source."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Distribution → version of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class StageRecord(Part):
    """A finished stage: its key, its JSON-able result, and the files that it wrote."""

    key: str
    result: Any
    files: dict[str, File]


class Stages:
    """Results of finished stages, one record each, which vouches for the files that the stage wrote into `artifact`.

    Attributes:
        tell: is told in a line what is damaged, and done again for that
    """

    def __init__(self, directory: Path, artifact: Path, tell: Callable[[str], None]) -> None:
        self.directory, self.artifact, self.tell = directory, artifact, tell
        directory.mkdir(parents=True, exist_ok=True)

    def run(
        self, name: str, key: str, work: Callable[[], Any], files: Callable[[Any], Iterable[str]] = lambda _: ()
    ) -> Any:
        """The JSON-able result of `work`, from the last run if that had the same key; `files` names what it wrote."""
        record, found = self._read(name, key)
        if record and not found and record.key == key:
            return record.result
        if found:
            self.tell(f"{name}: {found}; it is done again")
        self._path(name).unlink(missing_ok=True)  # what the stage writes is no longer what the record says
        for file in record.files if record else ():
            (self.artifact / file).unlink(missing_ok=True)  # never written over: it may be an earlier artifact's, too
        result = work()
        self.keep(name, key, result, seal(self.artifact, files(result), File))
        # As read back, so that a resumed build goes on with the very same values.
        return self._record(name).result

    def holds(self, name: str, key: str) -> bool:
        """Whether the stage need not be run."""
        record, found = self._read(name, key)
        return bool(record and not found and record.key == key)

    def files(self) -> dict[str, File]:
        """Relative path → size and hash of what all records vouch for."""
        records = [self._read(path.stem)[0] for path in self.directory.glob("*.json")]
        return {name: entry for record in records if record for name, entry in record.files.items()}

    def _record(self, name: str) -> StageRecord:
        return StageRecord.model_validate(read_record(self._path(name)))

    def _read(self, name: str, key: str | None = None) -> tuple[StageRecord | None, str | None]:
        """A stage's record, and what is damaged of what it says under this key."""
        try:
            record = self._record(name) if self._path(name).exists() else None
        except Damaged as error:
            return None, str(error)
        return record, damage(self.artifact, record.files) if record and record.key == key else None

    def keep(self, name: str, key: str, result: Any, files: dict[str, File]) -> None:
        """Records a result, with the sizes and hashes of its files, which are on the disk for good."""
        write_record(self._path(name), StageRecord(key=key, result=result, files=files).to_json())

    def forget_all_but(self, names: set[str]) -> None:
        for path in self.directory.glob("*.json"):
            if path.stem not in names:
                path.unlink()

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.json"
