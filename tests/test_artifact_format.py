"""The published description of an artifact: schema and page say what the models say, with a meaning for every key."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmc.budget_recipe import KEYS
from llmc.calibration_recipe import Check
from llmc.cli import app
from llmc.contracts.engine import EngineDescription
from llmc.contracts.kernels import KernelSetDescription
from llmc.contracts.layer_record import LayerRecord
from llmc.contracts.manifest import Manifest, RecipeRecord
from llmc.contracts.part import Part
from llmc.contracts.report import Report
from llmc.recipe import Recipe

REPOSITORY = Path(__file__).parents[1]


def objects(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield schema["title"], schema
    yield from schema.get("$defs", {}).items()


@pytest.mark.parametrize("part", [Manifest, Report, EngineDescription, KernelSetDescription])
def test_every_key_has_a_meaning(part: type[Part]) -> None:
    for name, found in objects(part.model_json_schema(mode="serialization")):
        assert found["description"], name
        for key, value in found.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key}"


def test_records_of_a_build_are_described_too() -> None:
    assert all(field.description for field in LayerRecord.model_fields.values())


def test_the_page_is_what_the_models_say() -> None:
    done = subprocess.run([sys.executable, REPOSITORY / "ci/docs/artifact_format.py", "--check"])
    assert done.returncode == 0, "run python ci/docs/artifact_format.py"


def test_the_page_has_every_key_of_the_manifest() -> None:
    page = (REPOSITORY / "docs" / "artifact-format.md").read_text(encoding="utf-8")
    for part in (Manifest, Report, EngineDescription, KernelSetDescription):
        assert all(f"| `{key}` |" in page for key in part.model_fields)


def test_schema_is_printed_and_names_what_is_always_there() -> None:
    printed = CliRunner().invoke(app, ["artifact", "schema"])
    schema = json.loads(printed.stdout)
    assert printed.exit_code == 0 and schema["title"] == "llmc artifact manifest"
    assert {"format_version", "model", "files", "targets"} <= set(schema["required"])
    assert schema["$defs"]["QuantizedRole"]["properties"].keys() >= {"expected", "quantized"}


def test_the_published_schema_of_the_report_is_its_own() -> None:
    printed = CliRunner().invoke(app, ["artifact", "schema", "--report"])
    published = json.loads((REPOSITORY / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    assert json.loads(printed.stdout) == Report.json_schema() == published


def test_the_manifest_has_a_place_for_all_of_a_recipe() -> None:
    """In the recipe's order; a key that it did not know would be written at the end. Rules take a budget's place."""
    record = list(RecipeRecord.model_fields)
    assert record == [name for name in Recipe.model_fields if name not in (*KEYS, "candidates", "publish")]
    check = RecipeRecord.model_json_schema(mode="serialization")["$defs"]["CheckRecord"]["properties"]
    assert list(check) == list(Check.model_fields)
