"""The check text travels with an artifact, and everybody is told; or it stays at home, with all that tells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from llmc.recipe import json_schema

PRIVATE = {"tokens": 256, "length": 64, "publish_text": False}


def words(table: str) -> str:
    return " ".join(table.replace("│", " ").split())


def test_it_is_said_where_the_text_goes(recipe, llmc, tmp_path: Path) -> None:
    done = llmc("build", recipe(), "--output", tmp_path / "artifact")
    assert done.exit_code == 0, done.stderr
    assert "check text its tokens are in reference.safetensors" in words(done.stdout)
    card = (tmp_path / "artifact" / "README.md").read_text()
    assert "The check text is in reference.safetensors word for word, as tokens" in card
    assert "the check text, as tokens" in card
    assert "publish_text" in llmc("build", "--help").stdout
    properties = json_schema()["$defs"]["Check"]["properties"]
    assert "in the artifact word for word" in properties["text"]["description"] and "publish_text" in properties


def test_a_text_that_is_not_published(recipe, llmc, tmp_path: Path, text_file: Path) -> None:
    artifact, beside = tmp_path / "artifact", tmp_path / "artifact.reference.safetensors"
    written = recipe(check=PRIVATE | {"text": str(text_file)})
    done = llmc("build", written, "--output", artifact)
    assert done.exit_code == 0, done.stderr
    manifest = json.loads((artifact / "llmc.json").read_text())
    assert not list(artifact.rglob("reference*")) and "reference.safetensors" not in manifest["files"]
    assert manifest["reference"]["bytes"] == beside.stat().st_size and manifest["checks"]["tokens"] == 4 * 63
    assert not list(tmp_path.glob("*.partial")) and "check text is not in the artifact" in words(done.stdout)
    card = (artifact / "README.md").read_text()
    assert "are not part of this artifact" in card and "| reference.safetensors |" not in card

    done = llmc("check", artifact)
    assert (
        done.exit_code == 2 and "the artifact was built without it, its builder has it; give --reference" in done.stderr
    )
    done = llmc("check", artifact, "--reference", beside, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["kl_mean"] == pytest.approx(manifest["checks"]["kl_mean"])
    other = tmp_path / "other.safetensors"
    other.write_bytes(beside.read_bytes()[:-1] + b"?")
    done = llmc("check", artifact, "--reference", other)
    assert done.exit_code == 2 and "not the reference of" in done.stderr

    done = llmc("bench", artifact, "--prompt-tokens", "8", "--new-tokens", "2", "--rounds", "1", "--json")
    assert done.exit_code == 0, done.stderr
    assert llmc("build", written, "--output", artifact).exit_code == 0  # up to date


def test_a_build_that_is_killed_before_its_end_has_it_still(
    recipe, llmc, tmp_path: Path, monkeypatch, text_file
) -> None:
    from llmc.output import OutputFolder

    artifact, beside = tmp_path / "artifact", tmp_path / "artifact.reference.safetensors"
    written = recipe(check=PRIVATE | {"text": str(text_file)})
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert llmc("build", written, "--output", artifact).exit_code == 130
    whole = beside.read_bytes()
    beside.unlink()
    assert not artifact.exists()
    assert llmc("build", written, "--output", artifact).exit_code == 0
    assert beside.read_bytes() == whole and not list(artifact.rglob("reference*"))
    assert "input_ids" in load_file(beside)
