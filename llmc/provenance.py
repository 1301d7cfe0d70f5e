"""provenance.json of an artifact: what it was made from, by what, and how: an in-toto statement with SLSA's predicate.

Made of the manifest alone, so that equal builds have equal ones: there is no time, host or user in it. It is no proof
by itself, since anybody can write such a file; a signature over the artifact covers it with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from packageurl import PackageURL

from llmc.contracts.manifest import Manifest, SourceRecord

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "pkg:pypi/llmc-toolchain#build-v1"  # docs/verify.md says what its parameters are


def provenance(manifest: Manifest) -> dict[str, Any]:
    """Return the statement, as JSON: its subjects are the files that the manifest lists.

    Args:
        manifest: of the finished artifact, before its report, card and this statement are listed in it

    See https://slsa.dev/spec/v1.0/provenance and the in-toto attestation framework's statement, version 1.
    """
    subjects = [described(name, file.sha256) for name, file in sorted(manifest.files.items())]
    builder = {
        "id": str(PackageURL("pypi", None, "llmc-toolchain", manifest.llmc_version)),
        "version": {"llmc-toolchain": manifest.llmc_version} | manifest.versions,
    }
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"recipe": manifest.recipe.to_json()},
            "internalParameters": {"key": manifest.key, "stages": manifest.stages},
            "resolvedDependencies": [MessageToDict(each) for each in _dependencies(manifest)],
        },
        "runDetails": {"builder": builder},
    }
    statement = Statement(subjects, PREDICATE_TYPE, predicate)
    statement.validate()
    return _plain(MessageToDict(statement.pb))


def address_of(source: SourceRecord) -> PackageURL | None:
    """Where a model of the hub is, at its revision; None: it came out of a folder, or with llmc."""
    organization, _, name = source.id.partition("/")
    if source.revision is None or not name:
        return None
    return PackageURL("huggingface", organization, name, source.revision.lower())


def texts_of(manifest: Manifest) -> Iterator[tuple[str, str, list[str]]]:
    """Purpose, SHA-256 of the tokens, and the sources as the recipe names them, of calibration and check text."""
    for purpose, sha256 in zip(("calibration", "check"), manifest.texts.sha256, strict=False):
        yield purpose, sha256, [each.text for each in manifest.texts.read.get(purpose, [])]


def described(name: str, sha256: str, **more: Any) -> Any:
    """in-toto's descriptor of a file or of something else with a hash."""
    descriptor = ResourceDescriptor(name=name, digest={"sha256": sha256}, **more)
    descriptor.validate()
    return descriptor.pb


def _dependencies(manifest: Manifest) -> Iterator[Any]:
    """Every file of the original, and the tokens of both texts."""
    address = address_of(manifest.source)
    for name, sha256 in sorted(manifest.source.files.items()):
        yield described(name, sha256, uri=f"{address}#{name}" if address else "")
    for purpose, sha256, sources in texts_of(manifest):
        yield described(f"{purpose} text", sha256, annotations={"of": "its tokens", "sources": sources})


def _plain(value: Any) -> Any:
    """What a protobuf makes of JSON, as JSON: its maps have no order, and all of its numbers are floating point."""
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
