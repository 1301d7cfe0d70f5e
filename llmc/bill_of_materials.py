"""bom.cdx.json of an artifact: what is in it and what it was made of, as a CycloneDX bill of materials for models.

Made of the manifest alone, by the library of CycloneDX; but for the model card, which that library does not know yet
and which is put into its JSON here, as the schema has it. No time stamp, and a serial number that follows from the
content: equal builds have equal ones.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from llmc.contracts.manifest import Checks, Manifest
from llmc.provenance import address_of, texts_of

_NAMESPACE = uuid.UUID("3c1d93c6-7f0b-5a55-9d0e-6f1e6c6d6c2b")  # of serial numbers; as good as any
_NORMAL_95 = 1.96  # standard errors on either side


def bill_of_materials(manifest: Manifest) -> dict[str, Any]:
    """Return the bill, as JSON in version 1.6.

    Args:
        manifest: of the finished artifact, before its report, card and this bill are listed in it
    """
    source = manifest.source
    original = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=source.id,
        version=source.revision,
        bom_ref="original",
        purl=address_of(source),
        licenses=_licenses(source.license),
        components=[_file(name, sha256, "original/") for name, sha256 in source.files.items()],
    )
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=manifest.name,
        version=manifest.key,
        bom_ref="model",
        description=f"made from {source.id} by llmc {manifest.llmc_version}",
        licenses=_licenses(source.license),
        pedigree=Pedigree(ancestors=[_reference(original)], notes=_treatment(manifest)),
    )
    files = [_file(name, file.sha256, "file/") for name, file in manifest.files.items()]
    texts = [_text(*each) for each in texts_of(manifest)]
    bom = Bom(
        metadata=BomMetaData(component=model, tools=ToolRepository(components=list(_tools(manifest)))),
        components=[original, *files, *texts],
        serial_number=uuid.uuid5(_NAMESPACE, manifest.key + "".join(sorted(f.sha256 for f in manifest.files.values()))),
    )
    bom.register_dependency(model, [original, *files, *texts])
    made: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del made["metadata"]["timestamp"]
    made["metadata"]["component"]["modelCard"] = _model_card(manifest, [str(text.bom_ref.value) for text in texts])
    return made


def _file(name: str, sha256: str, home: str) -> Component:
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]
    return Component(type=ComponentType.FILE, name=name, bom_ref=f"{home}{name}", hashes=hashes)


def _text(purpose: str, sha256: str, sources: list[str]) -> Component:
    return Component(
        type=ComponentType.DATA,
        name=f"{purpose} text",
        bom_ref=f"text/{purpose}",
        description="hashed as tokens",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        properties=[Property(name="llmc:source", value=source) for source in sources],
    )


def _reference(component: Component) -> Component:
    """The same in few words, where it is named a second time."""
    return Component(type=component.type, name=component.name, version=component.version, purl=component.purl)


def _tools(manifest: Manifest) -> Iterator[Component]:
    for name, version in ({"llmc-toolchain": manifest.llmc_version} | manifest.versions).items():
        yield Component(
            type=ComponentType.APPLICATION if name == "llmc-toolchain" else ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"tool/{name}",
            purl=PackageURL("pypi", None, name, version),
        )


def _licenses(license: str | None) -> list[Any]:
    """As an expression of SPDX where it is one; hubs write identifiers in small letters, and `other`."""
    return [] if license is None else [LicenseFactory().make_from_string(license)]


def _treatment(manifest: Manifest) -> str:
    parts = [f"{role}: {', '.join(each.schemes)}" for role, each in sorted(manifest.quantized.items()) if each.schemes]
    if pruned := manifest.pruned or None:
        parts.append(f"experts per layer: {pruned.experts_before} to {pruned.experts_after} ({pruned.method})")
    return "; ".join(parts) or "nothing was quantized or pruned"


def _model_card(manifest: Manifest, texts: list[str]) -> dict[str, Any]:
    inputs = [{"format": "string"}, *([{"format": "image"}] if manifest.model.images else [])]
    card: dict[str, Any] = {
        "bom-ref": "model-card",
        "modelParameters": {
            "task": "image-text-to-text" if manifest.model.images else "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": manifest.model.family,
            "datasets": [{"ref": text} for text in texts],
            "inputs": inputs,
            "outputs": [{"format": "string"}],
        },
    }
    if checks := manifest.checks or manifest.torch_checks or None:
        card["quantitativeAnalysis"] = {"performanceMetrics": list(_metrics(checks))}
    if manifest.notes:
        card["considerations"] = {"technicalLimitations": manifest.notes}
    return card


def _metrics(checks: Checks) -> Iterator[dict[str, Any]]:
    """What was measured, with intervals of 95 % by standard errors over windows of the check text."""
    for name, value, error in (
        ("perplexity of the original", checks.ppl_original, checks.ppl_original_stderr),
        ("perplexity", checks.ppl, checks.ppl_stderr),
        ("KL divergence from the original, mean, nats per token", checks.kl_mean, checks.kl_mean_stderr),
        ("top-1 agreement with the original", checks.top1, checks.top1_stderr),
    ):
        metric: dict[str, Any] = {"type": name, "value": f"{value:.6g}", "slice": "check text"}
        if error is not None:
            low, high = value - _NORMAL_95 * error, value + _NORMAL_95 * error
            metric["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
        yield metric
