"""Provenance and bill of materials of a build, by the libraries and schemas of those who defined them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import Parse
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from llmc.bill_of_materials import bill_of_materials
from llmc.contracts.manifest import Manifest, SourceRecord
from llmc.provenance import provenance
from llmc.runtime.artifact import Artifact

ABOUT = {"README.md", "report.json", "report.html", "provenance.json", "bom.cdx.json"}


@pytest.fixture(scope="module")
def manifest(audited_artifact: Path) -> Manifest:
    return Artifact.open(audited_artifact).described()


def as_built(manifest: Manifest) -> Manifest:
    """As it was when both were written."""
    files = {name: file for name, file in manifest.files.items() if name not in ABOUT}
    return manifest.model_copy(update={"files": files})


def test_every_file_that_was_built_is_a_subject(audited_artifact: Path, manifest: Manifest) -> None:
    text = (audited_artifact / "provenance.json").read_text()
    Statement.copy_from_pb(Parse(text, StatementMessage())).validate()
    statement = json.loads(text)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert manifest.files.keys() >= ABOUT
    subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert subjects == {name: file.sha256 for name, file in manifest.files.items() if name not in ABOUT}


def test_it_says_what_was_done_to_what(audited_artifact: Path, manifest: Manifest) -> None:
    predicate = json.loads((audited_artifact / "provenance.json").read_text())["predicate"]
    definition = predicate["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == manifest.recipe.to_json()
    assert definition["internalParameters"]["key"] == manifest.key
    used = {each["name"]: each["digest"]["sha256"] for each in definition["resolvedDependencies"]}
    texts = dict(zip(("calibration text", "check text"), manifest.texts.sha256, strict=True))
    assert used == manifest.source.files | texts
    assert predicate["runDetails"]["builder"]["version"].items() >= manifest.versions.items()
    assert {"torch", "in-toto-attestation", "cyclonedx-python-lib"} <= manifest.versions.keys()
    assert "metadata" not in predicate["runDetails"]  # where others write times


def test_the_bill_is_valid_and_complete(audited_artifact: Path, manifest: Manifest) -> None:
    text = (audited_artifact / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    components = {each["bom-ref"]: each for each in bill["components"]}
    for name, file in manifest.files.items():
        if name not in ABOUT:
            assert components[f"file/{name}"]["hashes"] == [{"alg": "SHA-256", "content": file.sha256}]
    original = components["original"]
    assert original["type"] == "machine-learning-model" and original["name"] == manifest.source.id
    assert {each["name"] for each in original["components"]} == manifest.source.files.keys()
    model = bill["metadata"]["component"]
    assert model["type"] == "machine-learning-model" and model["pedigree"]["ancestors"][0]["name"] == original["name"]
    card = model["modelCard"]
    assert {each["ref"] for each in card["modelParameters"]["datasets"]} == {"text/calibration", "text/check"}
    metrics = {each["type"]: each for each in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert manifest.checks and float(metrics["perplexity"]["value"]) == pytest.approx(manifest.checks.ppl, rel=1e-5)
    assert "timestamp" not in bill["metadata"]
    (depends,) = (each["dependsOn"] for each in bill["dependencies"] if each["ref"] == "model")
    assert set(depends) == components.keys()


def test_another_process_elsewhere_makes_the_same_bytes(audited_artifact: Path, manifest: Manifest) -> None:
    code = (
        "import json, sys; from llmc.contracts.manifest import Manifest; from llmc.provenance import provenance; "
        "from llmc.bill_of_materials import bill_of_materials; made = Manifest.model_validate(json.load(sys.stdin)); "
        "print(json.dumps([provenance(made), bill_of_materials(made)]))"
    )
    elsewhere = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Pacific/Chatham", "LC_ALL": "C", "USER": "somebody"}
    told = as_built(manifest)
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(told.to_json()), env=elsewhere, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    here = [provenance(told), bill_of_materials(told)]
    assert done.stdout == json.dumps(here) + "\n"
    for name, made in zip(("provenance.json", "bom.cdx.json"), here, strict=True):
        assert (audited_artifact / name).read_text() == json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def test_models_of_a_hub_have_their_address(manifest: Manifest) -> None:
    source = SourceRecord(id="Qwen/Qwen3-0.6B", revision="A" * 40, license="apache-2.0", files=manifest.source.files)
    told = as_built(manifest).model_copy(update={"source": source})
    address = f"pkg:huggingface/Qwen/Qwen3-0.6B@{'a' * 40}"
    used: list[dict[str, Any]] = provenance(told)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {each["uri"] for each in used if "uri" in each} == {f"{address}#{name}" for name in source.files}
    bill = bill_of_materials(told)
    original = next(each for each in bill["components"] if each["bom-ref"] == "original")
    assert original["purl"] == address and original["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


@pytest.mark.parametrize("license", ["other", "llama3.1", "MIT OR Apache-2.0", "<b>mine</b>\n", "x" * 3000])
def test_whatever_a_model_card_calls_its_license(manifest: Manifest, license: str) -> None:
    source = manifest.source.model_copy(update={"license": license})
    bill = bill_of_materials(as_built(manifest).model_copy(update={"source": source}))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert bill["metadata"]["component"]["licenses"]
