"""`--verify` of the commands that are given an artifact; and `inspect`, which believes no file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.listed_files import list_files
from typer.testing import CliRunner

from llmc.cli import app


@pytest.fixture(scope="module")
def built(small_model: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    (folder / "small.yaml").write_text(
        f"model: {small_model}\ncalibration: {{text: {text_file}, samples: 4, length: 32}}\n"
        f"quantize: [{{match: experts, scheme: int4-g32, method: rtn}}]\n"
        f"check: {{text: {text_file}, tokens: 128, length: 32, gates: {{kl_mean: 5.0}}}}\n"
    )
    done = CliRunner().invoke(app, ["build", str(folder / "small.yaml"), "-o", str(folder / "artifact")])
    assert done.exit_code == 0, done.stderr
    return folder / "artifact"


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "artifact")


COMMANDS = {
    "check": [],
    "run": ["--prompt", "a", "--max-new-tokens", "1"],
    "bench": ["--prompt-tokens", "4", "--new-tokens", "2", "--rounds", "1"],
    "inspect": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_finds_what_was_changed_and_names_what_was_added(artifact: Path, command: str) -> None:
    (artifact / "chat_template.jinja").write_text("{{ 'x' }}")
    arguments = [command, str(artifact), *COMMANDS[command]]
    done = CliRunner().invoke(app, [*arguments, "--verify"])
    assert done.exit_code == 0, done.stderr
    assert "files are as they were built" in done.stderr
    assert "not listed in llmc.json, and not used: 'chat_template.jinja'" in done.stderr
    weights = sorted(artifact.glob("model-*.safetensors"))[0]
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    done = CliRunner().invoke(app, [*arguments, "--verify"])
    assert done.exit_code == 2 and f"{weights.name}: not the file that was built" in done.stderr


def test_what_belongs_to_no_artifact(artifact: Path, small_model: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(small_model), "--verify"])
    assert done.exit_code == 2 and "has no llmc.json to verify against" in done.stderr
    shutil.copy(artifact / "config.json", artifact / "added.json")
    done = CliRunner().invoke(app, ["inspect", str(artifact / "added.json"), "--verify"])
    assert done.exit_code == 2 and "is none of the files that" in done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", None), ("source", {"id": 1, "revision": None, "license": None}),
        ("sizes", {"original": 0, "artifact": 1}),
        ("quantized", []), ("quantized", {"experts": {"quantized": "x", "schemes": []}}), ("pruned", {"method": 1}),
        ("checks", {"tokens": 1}), ("recipe", []), ("targets", {"onnxruntime": {"files": {}, "file_bytes": None}}),
    ],
)  # fmt: skip
def test_a_manifest_whose_parts_are_of_other_types(artifact: Path, key: str, value: object) -> None:
    manifest = json.loads((artifact / "llmc.json").read_text())
    for changed in (manifest | {key: value}, {name: part for name, part in manifest.items() if name != key}):
        (artifact / "llmc.json").write_text(json.dumps(changed))
        done = CliRunner().invoke(app, ["inspect", str(artifact)])
        assert done.exit_code == 2 and "llmc.json: broken manifest (" in done.stderr, done.stderr


def test_a_target_that_does_not_say_how_large_it_is(artifact: Path) -> None:
    manifest = json.loads((artifact / "llmc.json").read_text())
    manifest["targets"]["another"] = {"files": {}}
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(app, ["inspect", str(artifact)])
    assert done.exit_code == 0 and "0 bytes in 0 files" in done.stdout, done.stderr


@pytest.mark.parametrize("told", [{"begins_with": [[0, 7]]}, {"begins_with": [[0, True]]}, {"ends_with": 3}, []])
def test_what_is_said_of_a_tokenizer(artifact: Path, told: object) -> None:
    manifest = json.loads((artifact / "llmc.json").read_text())
    manifest["tokenizer"] = {**manifest["tokenizer"], **told} if isinstance(told, dict) else told
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(app, ["inspect", str(artifact)])
    assert done.exit_code == 2 and "llmc.json: " in done.stderr, done.output


@pytest.mark.parametrize("text", ["[]", "{", '{"engine": "a.engine"}', "\x00"])
def test_the_description_of_an_engine(artifact: Path, text: str) -> None:
    (artifact / "a.engine").write_bytes(b"")
    (artifact / "a.json").write_text(text)
    list_files(artifact, "a.json")
    done = CliRunner().invoke(app, ["inspect", str(artifact / "a.engine")])
    assert done.exit_code == 2 and "a.json: " in done.stderr


def test_an_artifact_with_a_broken_manifest_is_built_anew(artifact: Path) -> None:
    from llmc.output import read_manifest, whole

    manifest = read_manifest(artifact)
    assert manifest and whole(artifact, manifest)
    manifest["checks"]["ppl"] = "low"
    assert not whole(artifact, manifest)
    (artifact / "llmc.json").write_text("[" * 10_000)
    assert read_manifest(artifact) is None


def test_the_command_names_every_fault_in_a_line(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(artifact.parent / "cache"))
    done = CliRunner().invoke(app, ["verify", str(artifact)])
    assert done.exit_code == 0 and "are as they were built, all read now" in done.stdout, done.stderr
    (artifact / "added\x1b[2J.py").write_text("")
    (artifact / "config.json").unlink()
    done = CliRunner().invoke(app, ["verify", str(artifact), "--json"])
    assert done.exit_code == 2
    first, second, last = done.stderr.splitlines()
    assert "config.json: missing" in first and r"added\x1b[2J.py: not listed in llmc.json" in second
    assert last.endswith("artifact: 2 faults; do not use it")
    found = json.loads(done.stdout)
    assert not found["verified"] and len(found["faults"]) == 2


def test_a_build_is_verified_as_it_left_it(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = json.loads(CliRunner().invoke(app, ["verify", str(built), "--json"]).stdout)
    assert told["verified"] and told["bytes_read"] == told["bytes"] > 0
    assert told["files"] == sum(1 for path in built.rglob("*") if path.is_file())
