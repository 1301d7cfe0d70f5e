"""The artifact directory: complete or absent, and never written by two builds at once."""

from __future__ import annotations

import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmc.contracts.manifest import Manifest
from llmc.contracts.part import checked
from llmc.errors import InputError
from llmc.files import read_json
from llmc.quant.durable import sync
from llmc.reference import beside
from llmc.runtime.artifact import MANIFEST, Artifact, digest
from llmc.work_folder import WorkFolder

_MANIFEST_BYTES = 1 << 25
# A build, named by its key, and the artifact that a newer one took the place of.
_WORK = re.compile(r"[0-9a-f]+|replaced")


class OutputFolder:
    """Work goes on in `<path>.work` and is renamed at the end: to `<path>`, or to `<path>.rejected`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path.with_name(f"{path.name}.work")
        self.rejected = path.with_name(f"{path.name}.rejected")
        self.log = path.with_name(f"{path.name}.log")
        self.folder = WorkFolder(self.work, _WORK)
        for existing in (self.path, self.rejected):
            _refuse_others(existing)
        for existing in (self.log, beside(self.path), beside(self.rejected)):
            _refuse_no_file(existing)
        self.folder.refuse_others()

    def lock(self) -> AbstractContextManager[None]:
        """Holds the work directory; the lock ends with the process, however that ends."""
        return self.folder.lock()

    def clear(self) -> None:
        """Ends the work directory of a build that was killed after its last rename, and that of no other."""
        if self.work.exists() and not any(self.work.glob("*/artifact")):
            with self.lock():
                self.folder.clear()

    def place(self, artifact: Path, passed: bool) -> Path:
        """Renames a finished artifact to its place, in exchange for an older one, and ends the work directory."""
        for path in (*artifact.rglob("*"), artifact):
            sync(path)
        place = self.path if passed else self.rejected
        older = self.work / "replaced"
        for existing in (self.path, self.rejected):  # it may have come there while the build ran
            _refuse_others(existing)
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            shutil.rmtree(older, ignore_errors=True)
            place.rename(older)
        artifact.rename(place)
        sync(self.work.parent)
        if passed and self.rejected.is_symlink():
            self.rejected.unlink()
        elif passed and self.rejected.exists():
            shutil.rmtree(self.rejected)
        self.folder.clear()
        return place


def _refuse_others(existing: Path) -> None:
    if existing.exists() and read_manifest(existing) is None:
        raise InputError(f"{existing}: exists and is not an llmc artifact; it is left alone, choose another --output")


def _refuse_no_file(existing: Path) -> None:
    """What is written beside the artifact goes through no link, and waits for no reader of a FIFO."""
    if existing.is_symlink() or (existing.exists() and not existing.is_file()):
        raise InputError(
            f"{existing}: exists and is no file; it is left alone: move it away, or choose another --output"
        )


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    """llmc.json of an artifact; None if the directory is none."""
    try:
        manifest = read_json(artifact / MANIFEST, _MANIFEST_BYTES)
    except InputError:
        return None
    return manifest if "format_version" in manifest else None


def whole(artifact: Path, document: dict[str, Any]) -> Manifest | None:
    """The manifest, where it says what was written into it and all files of the artifact are there in their size."""
    if document.get("digest", digest(document)) != digest(document):
        return None
    try:
        manifest = checked(Manifest, document, str(artifact))
        opened = Artifact.open(artifact)
        return manifest if all(opened.file(name) for name in opened.files) else None
    except InputError:
        return None
