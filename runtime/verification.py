"""Is an artifact what was built, all of it and nothing else? Asked of whatever came over a network, and by
`llmc verify`.

More is refused here than where an artifact is opened, which uses what the manifest lists and leaves the rest alone: the
folder may hold nothing that is not listed, and the model card, too, has to be the one that was built.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import InputError
from llmc.files import stamp
from llmc.runtime.artifact import MANIFEST, Artifact, digest
from llmc.runtime.known_hashes import KnownHashes

if TYPE_CHECKING:
    from llmc.contracts.progress import ProgressFunction


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        path: the artifact
        files: name → SHA-256 of every file that is as listed, and of the manifest
        bytes: of all listed files
        bytes_read: of those that had to be read; the hashes of the others were known
        faults: what is wrong, a sentence each; none: nothing is
    """

    path: Path
    files: dict[str, str] = field(repr=False)
    bytes: int
    bytes_read: int
    faults: list[str]

    def require(self) -> Verification:
        """Return itself; InputError where there are faults, with the first of them."""
        if not self.faults:
            return self
        more = f" (and {len(self.faults) - 1} more faults: `llmc verify {self.path}`)" if len(self.faults) > 1 else ""
        raise InputError(f"{self.faults[0]}{more}")

    def to_json(self) -> dict[str, Any]:
        """Return what `llmc verify --json` prints."""
        return {
            "path": str(self.path),
            "verified": not self.faults,
            "files": len(self.files),
            "bytes": self.bytes,
            "bytes_read": self.bytes_read,
            "faults": self.faults,
        }


def verify(path: Path | str, progress: ProgressFunction | None = None, fresh: bool = False) -> Verification:
    """Hold every file of an artifact against its manifest; offline, and cheap the second time.

    Args:
        path: The artifact's folder; in a hub's cache, the snapshot.
        progress: Is told how many bytes have been read, of how many.
        fresh: Read files again that have not changed since they were verified.

    Returns:
        What is as it was built, and every fault.

    Raises:
        InputError: for what is no artifact, or has a manifest that cannot be understood
    """
    folder = Path(path)
    artifact, known = Artifact.open(folder, whole=False), KnownHashes(folder, forget=fresh)
    total, done, read = sum(listed.bytes for listed in artifact.files.values()), 0, 0
    files, faults = dict[str, str](), list[str]()

    def more(count: int) -> None:
        nonlocal done, read
        done, read = done + count, read + count
        if progress:
            progress("sha256", done, total)

    said = artifact.document.get("digest")
    if said is not None and said != digest(artifact.document):
        faults.append(f"{artifact.called(MANIFEST)}: says something else than was written into it; download it again")
    for name, listed in artifact.files.items():
        try:
            place = artifact.file(name)
            if known.get(name, place) == listed.sha256:
                done += listed.bytes
            else:
                before, began = stamp(place), time.time_ns()
                known.put(name, before, began, artifact.verified(name, more), listed.sha256)
            files[name] = listed.sha256
        except (InputError, OSError) as error:
            faults.append(str(error))
    known.keep()
    faults += [
        f"{artifact.called(name)}: not listed in {MANIFEST}, so that nobody vouches for it; remove it"
        for name in artifact.unlisted()
    ]
    try:
        files[MANIFEST] = artifact.manifest_sha256()
    except InputError as error:
        faults.append(str(error))
    return Verification(folder, files, total, read, faults)
