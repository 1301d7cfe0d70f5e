"""What an earlier artifact saves a build, and that it ends in the bytes of one that was made anew."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.folder_contents import contents

from llmc import pipeline
from llmc.convert.targets import onnx, onnxruntime
from llmc.runtime.artifact import digest

pytestmark = pytest.mark.slow

BOTH = [{"onnxruntime": {}}, {"onnx": {}}]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in order."""
    done: list[str] = []

    def watch(owner: Any, attribute: str, name: str) -> None:
        work = getattr(owner, attribute)

        def run(*arguments: Any) -> Any:
            done.append(name)
            return work(*arguments)

        monkeypatch.setattr(owner, attribute, run)

    watch(pipeline, "quantize", "quantize")
    watch(onnxruntime.TARGET, "build", "onnxruntime")
    watch(onnx.TARGET, "build", "onnx")
    watch(pipeline._Build, "_check", "check")
    return done


def with_gates(recipe, **gates: float) -> Path:
    check = yaml.safe_load(recipe().read_text())["check"]
    return recipe(check=check | {"gates": gates})


def same_as_fresh(llmc, path: Path, output: str) -> None:
    assert llmc("build", path, "--output", "anew/small").exit_code in (0, 3)
    anew = Path("anew/small") if Path("anew/small").exists() else Path("anew/small.rejected")
    assert contents(Path(output)) == contents(anew)


def test_a_looser_gate_is_only_judged_again(llmc, recipe, made: list[str]) -> None:
    assert llmc("build", with_gates(recipe, kl_mean=1e-9)).exit_code == 3
    assert made == ["quantize", "onnxruntime", "check"]
    for limit, code, place in (
        (1e-8, 3, "build/small.rejected"),
        (5.0, 0, "build/small"),
        (1e-9, 3, "build/small.rejected"),
    ):
        made.clear()
        path = with_gates(recipe, kl_mean=limit)
        again = llmc("build", path)
        assert (again.exit_code, made) == (code, [])
        assert "quantize, onnxruntime, check taken from there" in again.stderr
        manifest = json.loads((Path(place) / "llmc.json").read_text())
        assert manifest["checks"]["gates"][0]["limit"] == limit
        assert manifest["checks"]["gates"][0]["passed"] == (code == 0)
        same_as_fresh(llmc, path, place)
        shutil.rmtree("anew")


def test_only_what_is_new_is_made(llmc, recipe, made: list[str]) -> None:
    assert llmc("build", recipe()).exit_code == 0
    steps: dict[str, tuple[dict[str, Any], list[str]]] = {
        "one target more": ({"targets": BOTH}, ["onnx"]),
        "another name": ({"targets": BOTH, "name": "other"}, []),
        "one target less": ({}, []),
        "other options": ({"targets": [{"onnxruntime": {"accuracy_level": 1}}]}, ["onnxruntime", "check"]),
    }
    for step, (changes, expected) in steps.items():
        made.clear()
        path = recipe(**changes)
        assert llmc("build", path, "--output", "build/small").exit_code == 0
        assert made == expected, step
        same_as_fresh(llmc, path, "build/small")
        shutil.rmtree("anew")


def test_fresh_makes_everything_again(llmc, recipe, made: list[str]) -> None:
    assert llmc("build", recipe()).exit_code == 0
    made.clear()
    assert llmc("build", recipe(), "--fresh").exit_code == 0
    assert made == ["quantize", "onnxruntime", "check"]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("model-00002-of-00004.safetensors", ["quantize", "onnxruntime", "onnx", "check"]),
        ("reference.safetensors", ["quantize", "onnxruntime", "onnx", "check"]),
        ("model.onnx.data", ["onnxruntime", "onnx", "check"]),
    ],
)
def test_damaged_files_are_not_taken(llmc, recipe, made: list[str], file: str, expected: list[str]) -> None:
    assert llmc("build", recipe()).exit_code == 0
    damaged = Path("build/small") / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    made.clear()
    path = recipe(targets=BOTH)
    again = llmc("build", path)
    assert again.exit_code == 0, again.stderr
    assert "build/small: not all of it is as it was built" in " ".join(again.stderr.split())
    assert made == expected
    same_as_fresh(llmc, path, "build/small")


@pytest.mark.parametrize(
    ("part", "value"), [("checks", {}), ("tensors", None), ("pruned", {"x": 1}), ("checks.kl_mean", 1e-9)]
)
def test_results_that_say_something_else_than_was_written_are_not_believed(
    llmc, recipe, made: list[str], part: str, value: Any
) -> None:
    """One of them would pass the gate; the others ended every later build in an error."""
    assert llmc("build", with_gates(recipe, kl_mean=1e-9)).exit_code == 3
    file = Path("build/small.rejected/llmc.json")
    manifest = json.loads(file.read_text())
    name, _, key = part.partition(".")
    manifest[name] = manifest[name] | {key: value} if key else value
    file.write_text(json.dumps(manifest))
    made.clear()
    path = with_gates(recipe, kl_mean=1e-8)
    assert llmc("build", path).exit_code == 3
    assert made == ["quantize", "onnxruntime", "check"]
    same_as_fresh(llmc, path, "build/small.rejected")


def test_files_outside_of_the_artifact_are_not_taken(llmc, recipe, tmp_path: Path) -> None:
    assert llmc("build", recipe()).exit_code == 0
    manifest = json.loads(Path("build/small/llmc.json").read_text())
    name = "../../../small.yaml"
    manifest["targets"]["onnxruntime"]["files"]["main"] = name
    manifest["files"][name] = manifest["files"]["model.onnx"]
    manifest["digest"] = digest(manifest)
    Path("build/small/llmc.json").write_text(json.dumps(manifest))
    path = recipe(targets=BOTH)
    before = path.read_bytes()
    assert llmc("build", path).exit_code == 0
    assert path.read_bytes() == before
    same_as_fresh(llmc, path, "build/small")


def test_a_build_that_stops_while_it_takes_files_does_not_write_over_them(
    llmc, recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are shared with the earlier artifact by links: what has no record is removed, not overwritten."""
    from llmc.stages import Stages

    assert llmc("build", recipe()).exit_code == 0
    before = contents(Path("build/small"))
    keep = Stages.keep

    def stop(self: Stages, name: str, *rest: Any) -> None:
        if name == "onnxruntime":
            raise KeyboardInterrupt
        keep(self, name, *rest)

    path = recipe(targets=BOTH)
    with monkeypatch.context() as patch:
        patch.setattr(Stages, "keep", stop)
        assert llmc("build", path).exit_code == 130
    with monkeypatch.context() as patch:
        patch.setattr("llmc.pipeline.earlier", lambda *_: None)
        patch.setattr("llmc.pipeline.model_card", lambda _: 1 / 0)
        assert llmc("build", path).exit_code == 1
    assert contents(Path("build/small")) == before
    assert llmc("build", path).exit_code == 0
    same_as_fresh(llmc, path, "build/small")


def test_a_check_text_that_is_not_published_is_taken_from_beside_the_artifact(llmc, recipe, made: list[str]) -> None:
    check = yaml.safe_load(recipe().read_text())["check"] | {"publish_text": False}
    assert llmc("build", recipe(check=check | {"gates": {"kl_mean": 1e-9}})).exit_code == 3
    assert Path("build/small.rejected.reference.safetensors").is_file()
    assert llmc("build", recipe(check=check | {"gates": {"kl_mean": 5.0}})).exit_code == 0
    assert made == ["quantize", "onnxruntime", "check"]
    assert Path("build/small.reference.safetensors").is_file()
    assert not Path("build/small.rejected.reference.safetensors").exists()
