"""The artifact directory: complete or absent, and never written by two builds at once."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmc.errors import InputError, MachineError
from llmc.files import read_json

MANIFEST = "llmc.json"
_MANIFEST_BYTES = 1 << 25


class Output:
    """Work goes on in `<path>.work` and is renamed at the end: to `<path>`, or to `<path>.rejected`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path.with_name(f"{path.name}.work")
        self.rejected = path.with_name(f"{path.name}.rejected")
        for existing in (self.path, self.rejected):
            if existing.exists() and read_manifest(existing) is None:
                raise InputError(
                    f"{existing}: exists and is not an llmc artifact; it is left alone, choose another --output"
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the work directory; the lock ends with the process, however that ends."""
        try:
            while True:
                self.work.mkdir(parents=True, exist_ok=True)
                path = self.work / "lock"
                file = os.open(path, os.O_RDWR | os.O_CREAT)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The build that held it before may have removed the work directory in between.
                if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                    break
                os.close(file)
        except BlockingIOError as error:
            raise MachineError(
                f"{self.path}: another build is writing it; wait for that, or choose another --output"
            ) from error
        except OSError as error:
            raise MachineError(f"{self.work}: cannot be written ({error.strerror}); choose another --output") from error
        try:
            yield
        finally:
            if self.work.exists() and [path.name for path in self.work.iterdir()] == ["lock"]:
                shutil.rmtree(self.work)
            os.close(file)

    def clear(self) -> None:
        """Ends the work directory of a build that was killed after its last rename, and that of no other."""
        if self.work.exists() and not any(self.work.glob("*/artifact")):
            with self.lock():
                shutil.rmtree(self.work)

    def place(self, artifact: Path, passed: bool) -> Path:
        """Renames a finished artifact to its place, in exchange for an older one, and ends the work directory."""
        place = self.path if passed else self.rejected
        if place.exists():
            older = self.work / "replaced"
            shutil.rmtree(older, ignore_errors=True)
            place.rename(older)
        artifact.rename(place)
        if passed and self.rejected.exists():
            shutil.rmtree(self.rejected)
        shutil.rmtree(self.work)
        return place


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    """llmc.json of an artifact; None if the directory is none."""
    try:
        manifest = read_json(artifact / MANIFEST, _MANIFEST_BYTES)
    except InputError:
        return None
    return manifest if "format_version" in manifest else None


def is_whole(artifact: Path, manifest: dict[str, Any]) -> bool:
    """Whether all files of an artifact are there in their size, and its manifest says what one says."""
    from llmc.runtime.artifact import Artifact
    from llmc.runtime.artifact_schema import Described, checked

    try:
        checked(Described, manifest, str(artifact))
        opened = Artifact.open(artifact)
        return all(opened.file(name) for name in opened.files)
    except InputError:
        return False
