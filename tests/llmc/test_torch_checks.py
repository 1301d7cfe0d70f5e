"""Without ONNX Runtime among the targets, what the pass over the layers measured is what is reported and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmc.convert.checkpoint import Checkpoint
from llmc.runtime.check import CheckReport


def manifest(folder: str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "llmc.json").read_text()))


def test_a_checkpoint_alone_is_measured(llmc, recipe) -> None:
    made = llmc("build", recipe(targets=[]), "-o", "out")
    assert made.exit_code == 0, made.output
    found = manifest("out")
    checks = found["checks"]
    assert checks["computed_by"] == "torch" and checks["tokens"] == 4 * 63
    assert checks["kl_mean"] > 0 and 0 < checks["top1"] <= 1 and checks["ppl"] != checks["ppl_original"]
    assert {*CheckReport.__dataclass_fields__} <= checks.keys()
    assert checks["kl_kind"] == "exact" and checks["kl_sampling_stderr"] > 0
    assert abs(checks["kl_sampled"] - checks["kl_mean"]) < 4 * checks["kl_sampling_stderr"]
    assert [each["error"] for each in found["layers"]] == found["layer_errors"]
    assert ["routing" in each for each in found["layers"]] == [False, True]
    card = (Path("out") / "README.md").read_text()
    for told in (made.stdout, card):
        assert "KL divergence" in told and "perplexity" in told and "the weights alone" in told
        assert "exact: over the whole vocabulary" in " ".join(told.replace("│", "").split())
        assert "with KL above 0.1" in told and "change of p" in told and "99.9 %" in told
    assert Checkpoint.open(Path("out")).spec.num_layers == 2


def test_it_measures_what_onnx_runtime_measures(llmc, recipe) -> None:
    """Weights that are rounded alike: what is left is what the target does with activations."""
    rules = [{"match": "attention", "scheme": "fp8-channel"}]
    made = llmc(
        "build", recipe(quantize=rules, targets=[{"onnxruntime": {"accuracy_level": 1}}]), "-o", "out", "--json"
    )
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)["manifest"]
    ours, theirs = found["torch_checks"], found["checks"]
    assert "computed_by" not in theirs and ours["gates"] == []
    assert theirs["kl_kind"] == "sampled" and "kl_sampled" not in theirs
    assert ours["kl_sampled"] == pytest.approx(theirs["kl_mean"], rel=2e-2)
    card = (Path("out") / "README.md").read_text()
    exact = f"{ours['kl_mean']:.4f} ± {ours['kl_mean_stderr']:.4f}"
    assert f"| KL of the weights | mean {exact}, exact: over the whole vocabulary" in card
    assert "estimated without bias" in card
    assert ours["ppl_original"] == pytest.approx(theirs["ppl_original"], rel=1e-6)
    assert ours["ppl"] == pytest.approx(theirs["ppl"], rel=1e-3)


@pytest.mark.parametrize(("limit", "code"), [(50.0, 0), (1e-9, 3)])
def test_gates_are_judged_by_it(llmc, recipe, text_file: Path, limit: float, code: int) -> None:
    check = {"text": str(text_file), "tokens": 256, "length": 64, "gates": {"kl_mean": limit}}
    made = llmc("build", recipe(targets=[], check=check), "-o", "out")
    assert made.exit_code == code, made.output
    gates = manifest("out.rejected" if code else "out")["checks"]["gates"]
    assert [(gate["name"], gate["passed"]) for gate in gates] == [("kl_mean", code == 0)]
    assert "gate kl_mean" in made.stdout


def test_an_earlier_artifact_keeps_it(llmc, recipe) -> None:
    """A target less: nothing is quantized again, and what the pass measured then is reported now."""
    assert llmc("build", recipe(), "-o", "out").exit_code == 0
    before = manifest("out")["torch_checks"]
    again = llmc("build", recipe(targets=[]), "-o", "out")
    assert again.exit_code == 0 and "quantize taken from there" in again.stderr
    assert manifest("out")["checks"] == before


@pytest.mark.filterwarnings("error")
def test_sources_of_the_check_text_are_told_apart(llmc, recipe, text_file: Path) -> None:
    check = {"text": [str(text_file), {"text": "builtin:python-docs", "weight": 3}], "tokens": 256, "length": 64}
    made = llmc("build", recipe(check=check), "-o", "out")
    assert made.exit_code == 0, made.output
    found = manifest("out")
    for checks in (found["torch_checks"], found["checks"]):
        parts = checks["kl_by_source"]
        assert [(each["text"], each["windows"]) for each in parts] == [("words.txt", 1), ("builtin:python-docs", 3)]
        assert sum(each["kl_mean"] * each["windows"] for each in parts) / 4 == pytest.approx(checks["kl_mean"])
        assert all(each["kl_mean_stderr"] > 0 and each["ppl"] > 1 for each in parts)
    again = llmc("check", "out", "--json")
    assert json.loads(again.stdout)["kl_by_source"] == found["checks"]["kl_by_source"]
    assert "KL by text" in llmc("check", "out").stdout
