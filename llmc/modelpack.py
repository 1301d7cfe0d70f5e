"""An artifact as registries of container images hold models: CNCF's ModelPack, an OCI manifest with a layer per file.

Files stay as they are, neither packed nor compressed (`raw`), so that a registry knows each by the SHA-256 that
llmc.json has: what two artifacts share is stored once, and what is there is not sent again. Nothing here talks to a
registry.

The specification is at https://github.com/modelpack/model-spec, and OCI's at
https://github.com/opencontainers/image-spec/blob/main/manifest.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmc.contracts.manifest import Manifest
from llmc.contracts.part import file_name
from llmc.errors import InputError
from llmc.runtime.artifact import BILL, CARD, PROVENANCE, REFERENCE, REPORT, REPORT_PAGE

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHTS, SETTINGS, DOCUMENT, DATA = (
    f"application/vnd.cncf.model.{kind}.v1.raw" for kind in ("weight", "weight.config", "doc", "dataset")
)
PATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"  # what `oras pull` calls a file
_WEIGHT_FILES = re.compile(r".*\.(safetensors|onnx|onnx\.data|engine)")
_DOCUMENTS = re.compile(r"(?i)(license|licence|notice|use_policy).*|.*\.(md|html|pdf)")
_ABOUT = (CARD, REPORT, REPORT_PAGE, PROVENANCE, BILL)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_LAYERS = 100_000


@dataclass(frozen=True)
class Layer:
    """A file of the artifact, as a registry knows it.

    Attributes:
        name: of the file, relative to the artifact's folder
        digest: `sha256:…`
        size: bytes
    """

    name: str
    digest: str
    size: int

    @property
    def media_type(self) -> str:
        """What the specification calls such a file."""
        if self.name == REFERENCE:
            return DATA
        if _WEIGHT_FILES.fullmatch(self.name):
            return WEIGHTS
        return DOCUMENT if self.name in _ABOUT or _DOCUMENTS.fullmatch(self.name) else SETTINGS

    def descriptor(self) -> dict[str, Any]:
        """Return what the manifest has of it."""
        annotations = {PATH: self.name, TITLE: self.name}
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, "annotations": annotations}


def layers(files: Mapping[str, tuple[str, int]]) -> list[Layer]:
    """Return the layers of these files (name → SHA-256 and bytes), in the order of their names."""
    return [Layer(name, f"sha256:{sha256}", size) for name, (sha256, size) in sorted(files.items())]


def model_config(manifest: Manifest, made: list[Layer]) -> bytes:
    """Return the model's configuration, which the manifest's `config` points to; equal bytes for equal artifacts."""
    schemes = sorted({scheme for role in manifest.quantized.values() for scheme in role.schemes})
    source = manifest.source
    descriptor = {
        "family": manifest.model.family,
        "name": manifest.name,
        "title": manifest.name,
        "description": f"{source.id}, quantized by llmc {manifest.llmc_version}",
        "revision": manifest.key,
        "licenses": [source.license] if source.license else [],
    }
    parameters = sum(role.parameters for role in manifest.quantized.values())
    config = {
        "architecture": "transformer",
        "format": "safetensors",
        "paramSize": _count(parameters),
        "quantization": ", ".join(schemes),
        "capabilities": {
            "inputTypes": ["text", *(["image"] if manifest.model.images else [])],
            "outputTypes": ["text"],
        },
    }
    filesystem = {"type": "layers", "diffIds": [layer.digest for layer in made]}
    kept = {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {key: value for key, value in config.items() if value},
        "modelfs": filesystem,
    }
    return json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def oci_manifest(config_digest: str, config_size: int, made: list[Layer], title: str) -> dict[str, Any]:
    """Return the manifest, as JSON; nothing in it tells when or where it was made."""
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config_size},
        "layers": [layer.descriptor() for layer in made],
        "annotations": {TITLE: title},
    }


def read_layers(manifest: Mapping[str, Any], what: str) -> dict[str, Layer]:
    """The layers of a stranger's manifest, by the names of their files; InputError, `what` first, for what is no model
    whose files are as they are, or names files that no artifact can have.
    """
    kind = manifest.get("artifactType")
    if kind != ARTIFACT_TYPE:
        raise InputError(f"{what}: is no ModelPack model ({str(kind)[:100]}); give the name of one")
    found = dict[str, Layer]()
    listed = manifest.get("layers")
    if not isinstance(listed, list) or len(listed) > _MOST_LAYERS:
        raise InputError(f"{what}: its manifest lists no layers; push it again")
    for each in listed:
        try:
            name, size = file_name(each["annotations"][PATH]), each["size"]
            if not str(each["mediaType"]).endswith(".raw"):
                raise ValueError(f"{name}: is packed ({str(each['mediaType'])[:100]}); llmc pulls files as they are")
            if name in found or type(size) is not int or size < 0 or not _DIGEST.fullmatch(each["digest"]):
                raise ValueError(f"{name}: occurs twice, or has no size or SHA-256")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{what}: broken manifest ({error}); push it again with `llmc publish`") from error
        found[name] = Layer(name, each["digest"], size)
    return found


def _count(parameters: int) -> str:
    """6.7B, as the specification writes numbers of parameters."""
    for letter, power in (("T", 12), ("B", 9), ("M", 6), ("K", 3)):
        if parameters >= 10**power:
            return f"{parameters / 10**power:.1f}".removesuffix(".0") + letter
    return ""
