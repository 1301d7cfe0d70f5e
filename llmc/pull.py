"""Pulling: an artifact comes from a model hub, verified, into the hub's own cache or a folder of its own."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.contracts.progress import Progress, Silent
from llmc.errors import InputError
from llmc.hub import HubName
from llmc.runtime.artifact import MANIFEST, Artifact
from llmc.runtime.from_hub import commit_of, fetch

if TYPE_CHECKING:
    from llmc.signing import Trust

_OF_THE_CLIENT = ".cache"  # what it remembers of a download into a folder


@dataclass(frozen=True)
class Pulled:
    """An artifact that is here.

    Attributes:
        path: where it lies, verified
        repo: the repository that it came from
        revision: the commit
        files: how many it has
        bytes: of all of them
    """

    path: Path
    repo: str
    revision: str
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return what `llmc pull --json` prints."""
        return asdict(self) | {"path": str(self.path)}


def pull(
    name: str, to: str | Path | None = None, *, trust: Trust | None = None, progress: Progress | None = None
) -> Pulled:
    """Get an artifact, whole and as it was built. What is here already is not fetched again.

    Args:
        name: `me/model`, or `me/model@revision` with a branch or a commit
        to: a folder that does not exist yet; None: the cache of the hub's client, where `load` and every command find
            it by its name
        trust: whose signature it must have; None: nobody's
        progress: is told how many bytes are here

    Raises:
        InputError: there is no such artifact, it is not as it was built, or `to` is taken
        MachineError: the hub cannot be reached, or its client is not installed
    """
    progress = progress or Silent()
    found = HubName.parse(name)
    if found is None:
        raise InputError(f"{name}: is no name on the hub; write OWNER/NAME or OWNER/NAME@REVISION")
    if to is None:
        path = fetch(found, progress=progress)
        _require_signed(path, trust, progress)
        return _pulled(path, found, path.name)
    commit = commit_of(found)
    return _pulled(_into(Path(to), HubName(found.repo, commit), trust, progress), found, commit)


def _require_signed(path: Path, trust: Trust | None, progress: Progress) -> None:
    if trust:
        from llmc.signing import verify_signed

        verify_signed(path, trust, progress).require()


def _into(folder: Path, name: HubName, trust: Trust | None, progress: Progress) -> Path:
    """It grows beside the folder, and is renamed when it is complete and verified."""
    partial = folder.with_name(f"{folder.name}.partial")
    if folder.exists() or folder.is_symlink():
        raise InputError(f"--to {folder}: exists; choose another folder, or leave --to out to use the cache")
    path = fetch(name, partial, progress)
    _require_signed(path, trust, progress)
    shutil.rmtree(path / _OF_THE_CLIENT, ignore_errors=True)
    partial.rename(folder)
    return folder


def _pulled(path: Path, name: HubName, revision: str) -> Pulled:
    artifact = Artifact.open(path)
    nbytes = sum(file.bytes for file in artifact.files.values()) + (path / MANIFEST).stat().st_size
    return Pulled(path, name.repo, revision, len(artifact.files) + 1, nbytes)
