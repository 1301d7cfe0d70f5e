"""What of an artifact is published: every file that its manifest lists, as it was built, and the manifest last."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from llmc.contracts.manifest import GateRecord, Manifest
from llmc.contracts.part import File
from llmc.contracts.progress import Progress
from llmc.errors import GateError, InputError
from llmc.files import read_regular
from llmc.runtime.artifact import CARD, MANIFEST, SIGNATURE, Artifact
from llmc.runtime.verification import verify
from llmc.summary import missed_line

_SIGNATURE_BYTES = 1 << 25
_UNLISTED = (MANIFEST, SIGNATURE)


@dataclass(frozen=True)
class Publication:
    """An artifact that may be published.

    Attributes:
        artifact: where its files are
        manifest: what was done and measured
        files: name → size and sha256 of every file, in the order in which they go; the manifest is the last
        missed: gates that it does not pass, and is published all the same
    """

    artifact: Artifact
    manifest: Manifest
    files: dict[str, File]
    missed: list[GateRecord]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def called(self) -> str:
        """Its name with the beginning of its digest: what commits and pull requests are named after."""
        return f"{self.manifest.name or self.artifact.path.name} {self.files[MANIFEST].sha256[:12]}"

    def place(self, name: str) -> Path:
        """Where a file lies."""
        return self.artifact.path / name if name in _UNLISTED else self.artifact.file(name)


def publication(path: Path, allow_rejected: bool, progress: Progress) -> Publication:
    """Read every file of an artifact, and say what is to be published.

    Args:
        path: the artifact
        allow_rejected: whether one that misses its gates is published; its card says that it does
        progress: is told how many bytes are read

    Raises:
        GateError: it misses gates
        InputError: it is none, a file is not as it was built, or one is there that the manifest does not list
    """
    artifact = Artifact.open(path)
    manifest = artifact.described()
    missed = manifest.checks.missed if manifest.checks else []
    if missed and not allow_rejected:
        raise GateError(f"{path}: {missed_line(missed)}; --allow-rejected publishes it with a card that says so")
    if missed and CARD not in artifact.files:
        raise InputError(f"{path}: has no {CARD} that says which gates it misses; build it again")
    found = verify(path, progress).require()
    return Publication(artifact, manifest, _in_order(artifact, found.files[MANIFEST]), missed)


def _in_order(artifact: Artifact, manifest_sha256: str) -> dict[str, File]:
    """Large files first, since they take the time; the card and a signature behind them, the manifest at the end."""
    names = sorted(artifact.files, key=lambda name: (name == CARD, -artifact.files[name].bytes, name))
    files = {name: artifact.files[name] for name in names}
    if signature := artifact.signature():  # no link to something else of whoever publishes
        data = read_regular(signature, _SIGNATURE_BYTES)
        files[SIGNATURE] = File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    files[MANIFEST] = File(sha256=manifest_sha256, bytes=(artifact.path / MANIFEST).stat().st_size)
    return files
