"""A whole build of a small random model through the command line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from support.folder_contents import contents

from llmc.convert.checkpoint import Checkpoint
from llmc.errors import RefusedError
from llmc.output import OutputFolder
from llmc.planning import plan
from llmc.recipe import read_recipe


def test_build(llmc, recipe, small_model: Path) -> None:
    path = recipe(targets=[{"onnxruntime": {}}, {"onnx": {}}], name="it")
    made = llmc("build", path)
    assert made.exit_code == 0, made.output
    assert "perplexity" in made.stdout
    out = Path("build/it")
    manifest = json.loads((out / "llmc.json").read_text())

    # Nothing of the work is left, and every file but the manifest is in it.
    assert sorted(file.name for file in Path("build").iterdir()) == ["it", "it.log"]
    assert sorted(manifest["files"]) == sorted(contents(out).keys() - {"llmc.json"})
    assert str(small_model.parent) not in (out / "llmc.json").read_text() + (out / "README.md").read_text()

    # The plan, made from headers, said exactly what came out.
    planned = plan(Checkpoint.open(small_model), read_recipe(path), out)
    artifact = Checkpoint.open(out)
    assert artifact.nbytes() == planned.total.after.bytes == manifest["sizes"]["artifact"]
    for role, counts in manifest["quantized"].items():
        assert counts["bytes"] == planned.roles[role].after.bytes
        assert counts["expected"] == counts["quantized"] == sum(planned.schemes.get(role, {}).values())
    assert manifest["pruned"]["experts_after"] == 6 == planned.experts[1]
    assert manifest["pruned"]["super_experts"].keys() == manifest["pruned"]["survivors"].keys()
    assert set(manifest["targets"]) == {"onnxruntime", "onnx"}

    # Every layer has its line, the last one too.
    assert re.findall(r"^  layer (\d/\d): ", made.stderr, re.MULTILINE) == ["1/3", "2/3", "3/3"]

    # The check is that of the artifact, and is what `llmc check` finds.
    checked = json.loads(llmc("check", out, "--json").stdout)
    for name in ("ppl", "ppl_original", "kl_mean", "top1"):
        assert checked[name] == pytest.approx(manifest["checks"][name], rel=1e-6)
    assert 0 < checked["kl_mean"] < 0.5

    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "text-generation"
    assert "| experts | int4-g32 | gptaq | 18 |" in card  # 3 matrices of each of 6 experts in one layer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"layout": "gptq", "quantize": [{"match": "experts", "scheme": "int4-g32-actorder"}]},
            "layout gptq: GPTQModel loads them",
        ),
        (
            {"layout": "native-fp8", "quantize": [{"match": "attention", "scheme": "fp8-block", "method": "rtn"}]},
            "layout native-fp8: they are as DeepSeek publishes",
        ),
        (
            {"kv_cache": "fp8", "quantize": [{"match": "attention", "scheme": "fp8-tensor-static"}]},
            "FP8, one calibrated scale per layer",
        ),
    ],
    ids=["gptq", "native-fp8", "FP8 cache"],
)
def test_other_layouts_and_an_fp8_cache(llmc, recipe, small_model: Path, changes, said: str) -> None:
    path = recipe(name="it", **changes)
    made = llmc("build", path)
    assert made.exit_code == 0, made.output
    assert said in Path("build/it/README.md").read_text()
    planned = plan(Checkpoint.open(small_model), read_recipe(path), Path("build/it"))
    artifact = Checkpoint.open(Path("build/it"))
    assert artifact.nbytes() == planned.total.after.bytes
    assert artifact.spec.fp8_cache == ("kv_cache" in changes)
    assert llmc("check", "build/it").exit_code == 0
    assert llmc("run", "build/it", "--prompt", "a b", "--max-new-tokens", "4").exit_code == 0


def test_up_to_date_and_rebuilt(llmc, recipe) -> None:
    path = recipe()
    first = json.loads(llmc("build", path, "--json").stdout)
    out = Path(first["path"])
    before = contents(out)
    stamp = (out / "llmc.json").stat().st_mtime_ns

    again = llmc("build", path, "--json")
    assert json.loads(again.stdout)["up_to_date"]
    assert "up to date" in again.stderr
    assert (out / "llmc.json").stat().st_mtime_ns == stamp

    # Killed after the artifact got its place: what it replaced goes, another build's work stays.
    (Path("build/small.work") / "replaced").mkdir(parents=True)
    assert llmc("build", path).exit_code == 0
    assert not Path("build/small.work").exists()
    (Path("build/small.work") / "0123" / "artifact").mkdir(parents=True)
    assert llmc("build", path).exit_code == 0
    assert Path("build/small.work/0123/artifact").exists()

    fresh = json.loads(llmc("build", path, "--json", "--fresh").stdout)
    assert not fresh["up_to_date"]
    assert contents(out) == before

    (out / "model.onnx").unlink()  # a damaged artifact is not up to date
    assert llmc("build", path).exit_code == 0
    assert contents(out) == before

    recipe(quantize=[{"match": "experts", "scheme": "int4-g32", "method": "rtn"}])
    assert llmc("build", path).exit_code == 0
    assert contents(out) != before
    assert sorted(file.name for file in Path("build").iterdir()) == ["small", "small.log"]


def test_missed_gate(llmc, recipe) -> None:
    gates = {"kl_mean": 1e-9, "top1": 0.01}
    path = recipe(check=yaml.safe_load(recipe().read_text())["check"] | {"gates": gates})
    made = llmc("build", path)
    assert made.exit_code == 3
    message = made.stderr.strip().splitlines()[-1]
    assert re.search(r"kl_mean MISSED: [\d.e-]+ \(at most 1e-09 nats\)", message)
    assert "top1" not in message
    assert sorted(file.name for file in Path("build").iterdir()) == ["small.log", "small.rejected"]
    card = (Path("build/small.rejected") / "README.md").read_text()

    assert "**It was rejected: it misses the limit of kl_mean.**" in card
    # The rejected artifact is whole: it can be looked at, run and checked.
    rejected = Path("build/small.rejected")
    assert llmc("inspect", rejected).exit_code == 0
    assert llmc("run", rejected, "--prompt", "a", "--max-new-tokens", 2).exit_code == 0
    assert llmc("check", rejected).exit_code == 3

    recipe(check=yaml.safe_load(path.read_text())["check"] | {"gates": {"top1": 0.01}})
    assert llmc("build", path).exit_code == 0
    assert sorted(file.name for file in Path("build").iterdir()) == ["small", "small.log"]


def test_other_targets_take_up_the_quantized_model(llmc, recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that fails costs its own time, not that of quantization; what it left is gone in the end."""
    from llmc.convert.targets import onnx
    from llmc.errors import InputError

    def fails(checkpoint, options, directory: Path, progress):
        (directory / "onnx").mkdir()
        (directory / "onnx" / "half.onnx").write_bytes(b"half")
        raise InputError("target onnx: refused")

    path = recipe(targets=[{"onnxruntime": {}}, {"onnx": {}}])
    with monkeypatch.context() as patch:
        patch.setattr(onnx.TARGET, "build", fails)
        failed = llmc("build", path)
    assert failed.exit_code == 2
    assert not Path("build/small").exists()

    from llmc import pipeline

    def never(*arguments):
        raise AssertionError("quantized twice")

    recipe(targets=[{"onnxruntime": {}}])
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "quantize", never)
        assert llmc("build", path).exit_code == 0
    resumed = contents(Path("build/small"))
    assert not Path("build/small/onnx").exists()
    assert llmc("build", path, "--fresh").exit_code == 0
    assert contents(Path("build/small")) == resumed


def test_a_target_whose_compiler_is_missing_is_skipped(llmc, recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorrt_rtx" else find(name, *rest)
    )
    made = llmc("build", recipe(targets=[{"onnxruntime": {}}, {"tensorrt-rtx": {}}]), "--json")
    assert made.exit_code == 0, made.output
    assert re.search(r"target tensorrt-rtx: skipped, .*; pip install .*\[rtx\]'", made.stderr)
    skipped = json.loads(made.stdout)["manifest"]["targets"]["tensorrt-rtx"]["skipped"]
    assert skipped.endswith("is not installed on this machine")  # how to get it depends on the machine


def test_what_a_compiler_refuses_names_the_rule(llmc, recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.convert.targets import tensorrt_rtx

    def build(*_: object) -> None:
        raise RefusedError("TensorRT-RTX refuses rtx.engine at N: too odd", node="model.layers.1.mlp.experts/MatMul_2")

    monkeypatch.setattr(tensorrt_rtx.TARGET, "build", build)
    made = llmc("build", recipe(targets=[{"tensorrt-rtx": {}}]))
    assert made.exit_code == 2
    told = " ".join(made.stderr.split())
    assert "target tensorrt-rtx: TensorRT-RTX refuses rtx.engine at N: too odd; these weights are" in told
    assert "these weights are quantized by the recipe's rule {match: experts, scheme: int4-g32}" in told


def test_what_is_not_an_artifact_is_left_alone(llmc, recipe) -> None:
    Path("build/small").mkdir(parents=True)
    Path("build/small/precious.txt").write_text("mine")
    made = llmc("build", recipe())
    assert made.exit_code == 2
    assert "is not an llmc artifact" in made.stderr
    assert contents(Path("build")) == {"small/precious.txt": b"mine"}


def test_one_build_at_a_time(llmc, recipe) -> None:
    with OutputFolder(Path("build/small")).lock():
        made = llmc("build", recipe())
        assert made.exit_code == 4
        assert "another build" in made.stderr
    shutil.rmtree("build", ignore_errors=True)
    assert llmc("build", recipe()).exit_code == 0
