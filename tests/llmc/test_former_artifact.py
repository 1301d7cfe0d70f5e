"""Artifacts of format version 1 that were written before the American spelling of their keys: everything reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmc import pipeline
from llmc.output import read_manifest, whole
from llmc.runtime import load
from llmc.runtime.artifact import digest

FORMER = {"quantized": "quantised", "quantize": "quantise"}


def renamed(value: dict[str, Any]) -> dict[str, Any]:
    return {FORMER.get(key, key): each for key, each in value.items()}


def with_gate(recipe, limit: float) -> Path:
    return recipe(check=yaml.safe_load(recipe().read_text())["check"] | {"gates": {"kl_mean": limit}})


@pytest.fixture
def former(llmc, recipe) -> Path:
    """A rejected artifact, as such an llmc left it."""
    assert llmc("build", with_gate(recipe, 1e-9)).exit_code == 3
    artifact = Path("build/small.rejected")
    manifest = renamed(json.loads((artifact / "llmc.json").read_text()))
    manifest["quantised"] = {role: renamed(counts) for role, counts in manifest["quantised"].items()}
    manifest["stages"] = renamed(manifest["stages"])
    del manifest["pruned"]["super_experts"]
    manifest["digest"] = digest(manifest)
    (artifact / "llmc.json").write_text(json.dumps(manifest, indent=2))
    return artifact


def test_it_is_run_checked_and_shown(llmc, former: Path) -> None:
    with load(former) as model:
        assert len(model.generate([2, 3], max_new_tokens=2).token_ids) <= 2
    assert llmc("check", former, "--verify").exit_code == 3  # by the gate that it was rejected by
    shown = llmc("inspect", former)
    assert shown.exit_code == 0 and "parameters as int4-g32" in shown.stdout
    document = read_manifest(former)
    assert document and whole(former, document)


def test_a_build_takes_what_it_need_not_make_again(llmc, recipe, former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was written by the same code; its key for the stage is then the same, under another name."""
    monkeypatch.setattr(pipeline, "quantize", lambda *_: pytest.fail("quantized again"))
    monkeypatch.setattr(pipeline._Build, "_check", lambda _: pytest.fail("checked again"))
    made = llmc("build", with_gate(recipe, 9.0))
    assert made.exit_code == 0, made.stderr
    manifest = json.loads(Path("build/small/llmc.json").read_text())
    assert manifest["quantized"]["experts"]["quantized"] > 0 and "quantize" in manifest["stages"]
    for part in (manifest, manifest["stages"], manifest["quantized"]["experts"]):
        assert not set(FORMER.values()) & part.keys()
