"""The two models of an audit: opened one after the other, each with a hash of what decides its answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from llmc.contracts.audit import AuditedModel
from llmc.errors import InputError
from llmc.runtime import Model, load
from llmc.runtime.artifact import CARD, MANIFEST, REPORT, REPORT_PAGE, Artifact
from llmc.source import BUILTIN, locate


@dataclass(frozen=True)
class Place:
    """Where a model lies; `hashes` are those of the files that it is made of, by name."""

    name: str
    path: Path
    hashes: dict[str, str]
    is_artifact: bool
    changed: bool = False

    @property
    def digest(self) -> str:
        """A hash of what it is made of."""
        return hashlib.sha256(json.dumps(self.hashes, sort_keys=True).encode()).hexdigest()


def artifact_place(path: Path) -> Place:
    """Return the place of an artifact; InputError where there is none."""
    opened = Artifact.open(path)
    manifest = opened.described()
    written = (CARD, REPORT, REPORT_PAGE)  # about it, and maybe anew: they change no answer
    hashes = {name: file.sha256 for name, file in opened.files.items() if name not in written}
    return Place(path.resolve().name, path, hashes, True, bool(manifest.quantized or manifest.pruned))


def original_place(named: str | None, artifact: Path) -> Place:
    """Return the place of what an artifact is compared with: another artifact, or a checkpoint.

    Args:
        named: A folder, `builtin:…` or an id of the hub; None: what the artifact was made of, if it is a builtin one.
        artifact: The one in question.

    Raises:
        InputError: Nothing is named, and the manifest does not tell where it lies; or there is no such thing.
    """
    made_of = Artifact.open(artifact).described().source.id
    if named is None and not made_of.startswith(BUILTIN):
        raise InputError(f"{artifact}: was made of {made_of}; say where that lies: --original FOLDER")
    named = named or made_of
    if (Path(named).expanduser() / MANIFEST).is_file():
        return artifact_place(Path(named).expanduser())
    source = locate(named, Path())
    from llmc.original import hashes  # torch

    return Place(source.id, source.path, hashes(source.path), False)


def is_source(original: Place, artifact: Path) -> bool:
    """Whether an artifact was made of these very files, or of what this other artifact was made of."""
    made_of = Artifact.open(artifact).described().source.files
    if original.is_artifact:
        return Artifact.open(original.path).described().source.files == made_of
    return all(original.hashes.get(name) == digest for name, digest in made_of.items())


def open_model(place: Place, backend: str | None, threads: int | None, device: int | None) -> Model:
    """Load it; backend and device are an artifact's."""
    if place.is_artifact:
        return load(place.path, backend, threads, speculative=False, device=device)
    from llmc.original import load_original

    return load_original(place.path, threads)


def audited(place: Place, model: Model) -> AuditedModel:
    """Return what audit.json says of it."""
    runs_on = model.backend_info.partition(" ")[0] if place.is_artifact else model.backend_info
    return AuditedModel(name=place.name, digest=place.digest, runs_on=runs_on, changed=place.changed)
