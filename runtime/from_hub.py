"""Artifacts by their names on a model hub: they come into the cache of the hub's client, and are used where they lie.

Only what the manifest lists is fetched, and all of it is held against the manifest before anybody is told where it is.
What is there needs no network any more, and files that have not changed are not read a second time.
"""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.errors import InputError, LlmcError, MachineError
from llmc.hub import HubName, client
from llmc.runtime.artifact import MANIFEST, SIGNATURE, Artifact
from llmc.runtime.verification import verify

if TYPE_CHECKING:
    from llmc.contracts.progress import ProgressFunction

_MAIN = "main"


def locate(artifact: str | Path, progress: ProgressFunction | None = None) -> Path:
    """Return the folder of an artifact, which is fetched where it is a name on the hub, `org/name` or
    `org/name@revision`; what exists here is no such name.

    Raises:
        InputError: There is no such artifact, or it is not as it was built.
        MachineError: It is not in the cache, and the hub cannot be asked.
    """
    name = None if os.path.lexists(artifact) else HubName.parse(os.fspath(artifact))
    return Path(artifact) if name is None else fetch(name, progress=progress)


def fetch(name: HubName, folder: Path | None = None, progress: ProgressFunction | None = None) -> Path:
    """Return where an artifact of the hub lies, complete and verified.

    Args:
        name: The repository, with its revision.
        folder: Where to put it in place of the cache; what an earlier call left there is gone on with.
        progress: Is told how many bytes are here, or read.

    Raises:
        InputError: There is no such artifact, or it is not as it was built.
        MachineError: The hub cannot be asked.
    """
    commit = commit_of(name)
    with client(f"artifact {name}", "not all of it is here") as hub:
        place = _manifest(hub, name, commit, folder)
        was_here = _complete(place)
        if not was_here:
            _fetch_listed(hub, name, commit, place, folder, progress)
    found = verify(place, progress)
    damaged = [each for each in Artifact.open(place, whole=False).files if each not in found.files]
    if was_here and damaged:  # since it came: the client takes what has the right name for the right file
        with suppress(LlmcError), client(f"artifact {name}", "damaged here") as hub:  # no network: the fault is told
            for each in damaged:
                hub.hf_hub_download(name.repo, each, revision=commit, local_dir=folder, force_download=True)
        found = verify(place, progress)
    found.require()
    with client(f"artifact {name}", "not all of it is here") as hub:
        if folder is None and _cached(hub, name) != commit:  # the client remembers what a branch was
            hub.hf_hub_download(name.repo, MANIFEST, revision=name.revision or _MAIN)
    return place


def commit_of(name: HubName) -> str:
    """Return the commit that a name means now; errors as of `fetch`."""
    with client(f"artifact {name}", "no such folder") as hub:
        return _commit(hub, name)


def _commit(hub: Any, name: HubName) -> str:
    """Of the cache, where the hub cannot be asked, or a commit is named that is in it."""
    known = _cached(hub, name)
    if known is not None and known == name.revision:
        return known
    try:
        return str(hub.HfApi().model_info(name.repo, revision=name.revision, timeout=10).sha)
    except hub.errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            advice = "if it is private, set HF_TOKEN, or call `hf auth login`"
            raise InputError(
                f"artifact {name}: no such folder, and the hub shows no such revision ({status}); {advice}"
            ) from error
        if known is None:
            raise
    except Exception as error:  # whatever comes of having no network
        if known is None:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MachineError(
                f"artifact {name}: no such folder, it is not in the cache, and the hub cannot be asked: {said}"
            ) from error
    return known


def _cached(hub: Any, name: HubName) -> str | None:
    """The commit that it was when it was last asked for, if that is in the cache."""
    found = hub.try_to_load_from_cache(name.repo, MANIFEST, revision=name.revision or _MAIN)
    return Path(found).parent.name if isinstance(found, str) else None


def _manifest(hub: Any, name: HubName, commit: str, folder: Path | None) -> Path:
    """The folder that its manifest is in by now."""
    try:
        found = hub.hf_hub_download(name.repo, MANIFEST, revision=commit, local_dir=folder)
    except hub.errors.RemoteEntryNotFoundError as error:  # its kin is raised when the hub did not answer
        raise InputError(
            f"artifact {name}: holds no {MANIFEST}, so it is no artifact; `llmc build` makes one of a checkpoint"
        ) from error
    return Path(found).parent


def _complete(place: Path) -> bool:
    """Whether all listed files are there, the card, too, which an artifact can be opened without."""
    artifact = Artifact.open(place, whole=False)
    try:
        for name in artifact.files:
            artifact.file(name)
    except InputError:
        return False
    return True


def _fetch_listed(
    hub: Any, name: HubName, commit: str, place: Path, folder: Path | None, progress: ProgressFunction | None
) -> None:
    """What the manifest lists, and nothing else that a stranger may have put beside it. The signature, which no
    manifest lists, comes first: what is listed and here does not tell that it is missing.
    """
    with suppress(hub.errors.RemoteEntryNotFoundError):
        hub.hf_hub_download(name.repo, SIGNATURE, revision=commit, local_dir=folder)
    listed = Artifact.open(place, whole=False).files
    patterns = [glob.escape(each) for each in (*listed, MANIFEST)]
    more: dict[str, Any] = {}
    if progress:
        total = sum(file.bytes for file in listed.values())
        more["tqdm_class"] = _bars(progress, f"pull {name.repo}", total)
    hub.snapshot_download(name.repo, revision=commit, local_dir=folder, allow_patterns=patterns, **more)


def _bars(progress: ProgressFunction, phase: str, total: int) -> Any:
    """What the client takes for a bar: it counts bytes, and draws none."""
    from tqdm.auto import tqdm

    here: dict[int, float] = {}

    class Told(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options |= {"file": open(os.devnull, "w"), "mininterval": 1e9}  # noqa: SIM115, PTH123
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            told = super().update(n)
            if self.counts_bytes:  # received, or written: two bars count the same bytes
                here[id(self)] = self.n
                progress(phase, min(max(here.values()), total), total)
            return told

    return Told
