"""Faults planted in an artifact of the embedded model: each is caught, whichever limits its recipe names."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from support.planted_faults import FAULTS, Fault, planted
from support.source_files import REPOSITORY
from typer.testing import CliRunner

from llmc.cli import app
from llmc.runtime import load
from llmc.runtime.gates import RUNTIME_KL, gates

# Which gates have to catch it; others may, too.
CAUGHT = {
    "one expert swapped with another": {"graph"},
    "one scale 5 % wrong": {"graph"},
    "RoPE of queries off by one": {"runtime_kl", "graph"},
    "a stale cache entry": {"graph"},
    "a dropped shared expert": {"runtime_kl", "graph"},
    "a transposed block": {"runtime_kl", "graph"},
    "MTP of another model": {"mtp_graph", "mtp_acceptance"},
    "a wrong chat template": {"chat_template"},
    "two tokens swapped": {"tokenizer"},
}


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """ci/docs/faults.py."""
    spec = importlib.util.spec_from_file_location("faults_page", REPOSITORY / "ci" / "docs" / "faults.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artifact(page: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page.artifact(tmp_path_factory.mktemp("faults"))


def test_every_fault_is_caught_and_the_page_says_by_what(page: ModuleType, artifact: Path, tmp_path: Path) -> None:
    found = page.rows(artifact, tmp_path)
    missed = {row.name: set(row.missed) for row in found}
    assert missed.pop("none") == missed.pop(page.HARMLESS) == set()
    assert missed.keys() == CAUGHT.keys() == FAULTS.keys()
    assert {name for name in missed if not missed[name] >= CAUGHT[name]} == set(), missed
    assert page.differences(page.PAGE.read_text(encoding="utf-8"), page.page(found)) == []


@pytest.mark.parametrize("name", FAULTS)
def test_hashes_catch_what_no_manifest_lists(artifact: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy", copy_function=os.link)
    FAULTS[name](copy)
    done = CliRunner().invoke(app, ["check", str(copy), "--verify"])
    assert done.exit_code == 2 and ("not the file that was built" in done.stderr or "bytes long" in done.stderr)


def test_what_is_said_of_a_fault(artifact: Path, tmp_path: Path) -> None:
    broken: Fault = FAULTS["two tokens swapped"]
    done = CliRunner().invoke(app, ["check", str(planted(artifact, broken, tmp_path / "a"))], env={"COLUMNS": "200"})
    assert done.exit_code == 3 and "tokenizer ANOTHER" in done.stdout
    assert "tokenizer MISSED: makes of fixed texts another thing than the original's" in done.stderr
    assert "it does not do here what it was built to do" in done.stderr


def test_gates_that_a_recipe_moves_or_leaves_out(artifact: Path, tmp_path: Path) -> None:
    with load(artifact, threads=1) as model:
        report = model.check()
    names = [gate.name for gate in gates(report, {})]
    assert names == ["runtime_kl", "graph", "mtp_graph", "tokenizer", "chat_template", "mtp_acceptance"]
    assert all(gate.by_default and gate.passed for gate in gates(report, {}))
    moved = gates(report, {"runtime_kl": 1e-9})
    assert (moved[0].name, moved[0].limit, moved[0].passed, moved[0].by_default) == ("runtime_kl", 1e-9, False, False)
    assert [gate.name for gate in moved] == names and gates(report, {})[0].limit == RUNTIME_KL
    assert [gate.name for gate in gates(report, {"kl_mean": 1.0}, defaults=False)] == ["kl_mean"]
    assert report.runtime is not None
    upset = replace(report, runtime=replace(report.runtime, kl_median=0.2, weights_kl_median=0.3))
    assert gates(upset, {})[0].passed and gates(upset, {})[0].limit == 0.3, "by rounding, as by quantization"
    faulty = replace(report, runtime=replace(report.runtime, kl_median=0.2))
    assert not gates(faulty, {})[0].passed

    def without(copy: Path) -> None:
        manifest = json.loads((copy / "llmc.json").read_text(encoding="utf-8"))
        manifest["recipe"]["check"]["default_gates"] = False
        (copy / "llmc.json").write_text(json.dumps(manifest), encoding="utf-8")
        FAULTS["two tokens swapped"](copy)

    done = CliRunner().invoke(app, ["check", str(planted(artifact, without, tmp_path / "b"))], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "tokenizer ANOTHER" in done.stdout
