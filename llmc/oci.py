"""An artifact goes to a registry of container images, and comes from one: `oci://host/name:tag`.

Pushed, it is verified first and its manifest goes last, so that nobody finds half of it; blobs that are there are not
sent again. Pulled, it grows beside its folder, what is there of it is not asked for again, and it is renamed when it is
complete and verified.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmc.contracts.progress import Progress, Silent
from llmc.errors import InputError
from llmc.modelpack import Layer, layers, model_config, oci_manifest, read_layers
from llmc.oci_registry import SCHEME, Registry
from llmc.publication import publication
from llmc.runtime.artifact import MANIFEST, SIGNATURE, Artifact
from llmc.runtime.verification import verify
from llmc.signing import Trust, verify_signed

__all__ = ["SCHEME", "Pulled", "Pushed", "pull", "push"]
_MANIFEST_BYTES = 1 << 25


@dataclass(frozen=True)
class Pushed:
    """An artifact that is in a registry.

    Attributes:
        name: `oci://host/name@sha256:…`: what `llmc pull` takes, and always means this very artifact
        digest: of the manifest
        files: how many there are
        bytes: of all of them
        bytes_sent: of those that were not there yet
    """

    name: str
    digest: str
    files: int
    bytes: int
    bytes_sent: int

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class Pulled:
    """An artifact that is here.

    Attributes:
        path: where it lies, verified
        name: `oci://host/name@sha256:…`
        digest: of the manifest
        files: how many there are
        bytes: of all of them
    """

    path: Path
    name: str
    digest: str
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self) | {"path": str(self.path)}


def push(
    artifact: Path | str, reference: str, *, allow_rejected: bool = False, progress: Progress | None = None
) -> Pushed:
    """Push an artifact into a registry, as a ModelPack model, its signature included.

    Args:
        artifact: the folder that `llmc build` made
        reference: `oci://host/name:tag`; the tag is `latest` where there is none
        allow_rejected: push what misses its gates, too; its card says so
        progress: is told how many bytes are there, of how many

    Raises:
        GateError: it misses its gates
        InputError: it is no artifact, not as it was built, or you may not write there
        MachineError: the registry cannot be reached, or oras is not installed
    """
    progress, registry = progress or Silent(), Registry(reference)
    if registry.digest:
        raise InputError(f"{reference}: only a tag can be pushed to; write oci://HOST/NAME:TAG")
    given = publication(Path(artifact), allow_rejected, progress)
    made = layers({name: (file.sha256, file.bytes) for name, file in given.files.items()})
    config = model_config(given.manifest, made)
    registry.open(to_write=True)
    done, sent = 0, 0
    for layer in sorted(made, key=lambda each: each.name == MANIFEST):
        if not registry.has(layer.digest):
            registry.send(given.place(layer.name), layer.digest, layer.size)
            sent += layer.size
        done += layer.size
        progress("push", done, given.nbytes)
    config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    if not registry.has(config_digest):
        with tempfile.NamedTemporaryFile() as file:
            file.write(config)
            file.flush()
            registry.send(Path(file.name), config_digest, len(config))
    digest = registry.send_manifest(oci_manifest(config_digest, len(config), made, given.manifest.name))
    return Pushed(f"{registry.name}@{digest}", digest, len(made), given.nbytes, sent)


def pull(
    reference: str, to: Path | str | None = None, *, trust: Trust | None = None, progress: Progress | None = None
) -> Pulled:
    """Pull an artifact out of a registry, whole, as it was built and, where that is asked, signed by whom you trust.

    Args:
        reference: `oci://host/name:tag`, or `oci://host/name@sha256:…`
        to: a folder that does not exist yet; None: the last part of the name, in the current folder
        trust: whose signature it must have; None: nobody's
        progress: is told how many bytes are here, of how many

    Raises:
        InputError: there is no such artifact, it is not as it was built, nobody trusted signed it, or `to` is taken
        MachineError: the registry cannot be reached, or oras is not installed
    """
    progress, registry = progress or Silent(), Registry(reference)
    folder = Path(registry.repository.rpartition("/")[2] if to is None else to)
    if folder.exists() or folder.is_symlink():
        raise InputError(f"--to {folder}: exists; choose another folder")
    partial = folder.with_name(f"{folder.name}.partial")
    registry.open(to_write=False)
    manifest, digest = registry.manifest()
    found = read_layers(manifest, reference)
    total, done = sum(layer.size for layer in found.values()), 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress("pull", done, total)

    if MANIFEST not in found or found[MANIFEST].size > _MANIFEST_BYTES:
        raise InputError(f"{reference}: holds no {MANIFEST}: a model, but no artifact of llmc")
    _clear_another(partial, found[MANIFEST].digest)
    registry.receive(found[MANIFEST].digest, found[MANIFEST].size, partial / MANIFEST, more)
    _require_listed(Artifact.open(partial, whole=False), found, reference)
    for name, layer in found.items():
        if name != MANIFEST:
            registry.receive(layer.digest, layer.size, partial / name, more)
    (verify_signed(partial, trust, progress) if trust else verify(partial, progress)).require()
    partial.rename(folder)
    return Pulled(folder, f"{registry.name}@{digest}", digest, len(found), total)


def _clear_another(partial: Path, manifest_digest: str) -> None:
    """Removes what a pull of another artifact left; of this one, what is there saves asking for it."""
    file = partial / MANIFEST
    if file.is_file() and f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" != manifest_digest:
        shutil.rmtree(partial)


def _require_listed(artifact: Artifact, found: dict[str, Layer], reference: str) -> None:
    """InputError when a registry has other files than the artifact lists, before these are asked for."""
    listed = {name: (f"sha256:{file.sha256}", file.bytes) for name, file in artifact.files.items()}
    given = {name: (each.digest, each.size) for name, each in found.items() if name not in (MANIFEST, SIGNATURE)}
    if differs := sorted(name for name in listed.keys() | given.keys() if listed.get(name) != given.get(name)):
        raise InputError(f"{reference}: {differs[0]} is not what its {MANIFEST} lists; push it again")
