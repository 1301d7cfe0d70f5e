"""What an earlier artifact, accepted or rejected, saves a build: the stages whose keys are still the same.

A looser gate is judged on the measurements that were made, one target more is compiled from the model that was
quantized. Files are linked, not copied, and are held against their hashes before they are taken.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.contracts.manifest import CheckedGraphs, Checks, Manifest
from llmc.contracts.part import File, checked
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.checkpoint_headers import INDEX
from llmc.errors import InputError
from llmc.output import OutputFolder, read_manifest
from llmc.quant.durable import seal
from llmc.reference import beside
from llmc.runtime.artifact import REFERENCE, digest
from llmc.stages import Stages


@dataclass(frozen=True)
class Earlier:
    """same: stage → key, of the stages that need not be run again; `quantize` is one of them."""

    path: Path
    manifest: Manifest
    same: dict[str, str]

    def results(self) -> Iterator[tuple[str, Any, list[str]]]:
        """Stage, result and files of what may be taken; InputError for a broken artifact."""
        if "sensitivity" in self.same and (spent := self.manifest.spent):
            yield "sensitivity", spent.to_json(), []
        yield "quantize", self.manifest.result.to_json(), quantized_files(self.path)
        for name, result in self.manifest.targets.items():
            if name in self.same:
                yield name, result.to_json(), list(result.files.values())
        if "check" in self.same and isinstance(self.manifest.checks, Checks):
            checks = self.manifest.checks.model_copy(update={"gates": []})
            yield "check", CheckedGraphs(checks=checks, built=self.manifest.built).to_json(), []

    def nbytes(self) -> int:
        """Of the files that may be taken; 0 where they cannot be told."""
        try:
            return sum(self._entry(name).bytes for _, _, names in self.results() for name in names)
        except (KeyError, InputError):
            return 0

    def _entry(self, name: str) -> File:
        """Size and hash of a file; KeyError for one that the manifest does not list."""
        apart = self.manifest.reference if name == REFERENCE else None
        return apart or self.manifest.files[name]

    def _file(self, name: str) -> Path:
        """Where it lies: what is not published, beside the artifact. ValueError for a name that leads out of it."""
        if name == REFERENCE and self.manifest.reference:
            return beside(self.path)
        path = self.path.resolve() / name
        if path.resolve() != path or not path.is_relative_to(self.path.resolve()):
            raise ValueError(name)
        return path

    def take_up(self, stages: Stages, tell: Callable[[str], None]) -> None:
        """Puts into a build's work folder what of this artifact it need not make, unless it is there already."""
        taken = []
        try:
            for name, result, files in self.results():
                if stages.holds(name, self.same[name]):
                    continue
                entries = {file: self._entry(file) for file in files}
                for file in files:
                    _link(self._file(file), stages.artifact / file)
                if seal(stages.artifact, files, File) != entries:
                    for file in files:
                        (stages.artifact / file).unlink()
                    raise ValueError
                stages.keep(name, self.same[name], result, entries)
                taken.append(name)
        except (KeyError, ValueError, FileNotFoundError, InputError):
            tell(f"{self.path}: not all of it is as it was built; what is missing is made again")
        if taken:
            tell(f"{self.path}: {', '.join(taken)} taken from there, since nothing that decides about it has changed")


def earlier(place: OutputFolder, keys: dict[str, str]) -> Earlier | None:
    """The artifact in the output's place or beside it that has most in common with a build of these keys. One whose
    manifest says something else than was written into it has nothing: its results would be believed.
    """
    found = []
    for path in (place.path, place.rejected):
        document = read_manifest(path) or {}
        if document.get("digest") != digest(document):
            continue
        try:
            manifest = checked(Manifest, document, str(path))
        except InputError:
            continue
        same = {name: key for name, key in manifest.stages.items() if keys.get(name) == key}
        if "quantize" in same:
            found.append(Earlier(path, manifest, same))
    return max(found, key=lambda each: len(each.same), default=None)


def quantized_files(artifact: Path) -> list[str]:
    """What the pass over the model wrote."""
    shards = [shard.name for shard in Checkpoint.open(artifact).shards]
    return [*shards, INDEX, "config.json", REFERENCE]


def _link(path: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links, or somebody else's file
        shutil.copyfile(path, new)
