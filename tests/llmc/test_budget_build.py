"""Builds with a budget: it is kept, measured once, taken up by the next budget, and written down as rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.byte_tokenizer import byte_tokenizer
from support.random_checkpoint import LLAMA, random_checkpoint

from llmc.budget_recipe import AS_IS
from llmc.contracts.progress import Silent
from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError
from llmc.job import Limits
from llmc.measuring import measure_sensitivity
from llmc.quant import sensitivity
from llmc.quant.assign import Rule, assign

pytestmark = pytest.mark.slow

CANDIDATES = ["int2-g32", "int4-g32", "fp8-channel", AS_IS]


@pytest.fixture
def budget(recipe: Callable[..., Path]) -> Callable[..., Path]:
    """Writes small.yaml with a budget in place of rules."""

    def write(**changes: Any) -> Path:
        return recipe(**{"quantize": None, "prune": None, "targets": [], "candidates": CANDIDATES} | changes)

    return write


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[str]]]:
    """The schemes of every measurement that is made."""
    made: list[set[str]] = []
    measure = sensitivity.measure

    def noted(checkpoint: Any, candidates: Any, *arguments: Any, **options: Any) -> Any:
        made.append({each.name for schemes in candidates.values() for each in schemes})
        return measure(checkpoint, candidates, *arguments, **options)

    monkeypatch.setattr(sensitivity, "measure", noted)
    yield made


@pytest.fixture(scope="module")
def sensitivities(small_model: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is measured of the model in all of these tests."""
    recipe = {
        "model": str(small_model),
        "calibration": {"text": str(text_file), "samples": 8, "length": 64},
        "targets": [],
        "check": {"text": str(text_file), "tokens": 256, "length": 64},
        "bits": 5.0,
        "candidates": CANDIDATES,
    }
    return measure_sensitivity(recipe, tmp_path_factory.mktemp("known") / "small", Limits(), False, Silent()).path


@pytest.fixture
def known(sensitivities: Path, llmc: Any) -> None:
    """They are there."""
    Path("build").mkdir()
    shutil.copy(sensitivities, "build")


def manifest(path: str = "build/small") -> dict[str, Any]:
    return json.loads(Path(path, "llmc.json").read_text())


def shards(path: str) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(Path(path).glob("model*.safetensors*"))}


def test_bits_are_kept_and_reused(llmc, budget, measurements: list[set[str]]) -> None:
    first = llmc("build", budget(bits=4.0), "--json")
    assert first.exit_code == 0, first.stderr
    told = manifest()["budget"]
    assert told["asked"] == "bits: 4.0" and 3.5 < told["bits"] <= 4.0
    assert told["predicted_kl"] > 0 and manifest()["torch_checks"]["kl_mean"] > 0
    assert [point["bytes"] for point in told["curve"]] == sorted(point["bytes"] for point in told["curve"])
    card = Path("build/small/README.md").read_text()
    assert "## Bits to a budget" in card and f"{told['predicted_kl']:.4f}" in card
    four = manifest()["torch_checks"]["kl_mean"]

    assert "up to date" in llmc("build", budget(bits=4.0)).stderr
    richer = llmc("build", budget(bits=7.0))
    assert richer.exit_code == 0 and "sensitivities: taken from" in richer.stderr
    assert len(measurements) == 1 and measurements[0] == {*CANDIDATES} - {AS_IS}
    assert manifest()["budget"]["predicted_kl"] < told["predicted_kl"]
    assert manifest()["torch_checks"]["kl_mean"] < four
    assert "predicted KL" in richer.stdout and "budget" in richer.stdout

    assert llmc("sensitivity", budget(bits=7.0, candidates=[*CANDIDATES, "int8-g32"])).exit_code == 0
    assert measurements[1:] == [{"int8-g32"}]


def test_the_artifacts_recipe_needs_no_measurement(
    llmc, budget, known, tmp_path: Path, measurements: list[set[str]]
) -> None:
    given = yaml.safe_load(budget(bits=5.0, prune={"keep": 0.75}).read_text())
    assert llmc("build", tmp_path / "small.yaml").exit_code == 0
    found = manifest()["recipe"]
    assert not {"bits", "size", "fit", "candidates"} & found.keys()
    again = {name: given[name] for name in ("model", "calibration", "prune", "check")}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again | {"quantize": found["quantize"], "targets": []}))
    assert llmc("build", tmp_path / "again.yaml").exit_code == 0
    assert not measurements
    assert shards("build/again") == shards("build/small")


def test_a_size_holds_everything(llmc, budget, known, small_model: Path) -> None:
    whole = sum(path.stat().st_size for path in small_model.glob("*.safetensors"))
    limit = whole * 45 // 100
    built = llmc("build", budget(size=limit))
    assert built.exit_code == 0, built.stderr
    size = sum(path.stat().st_size for path in Path("build/small").glob("model-*.safetensors"))
    assert 0.9 * limit < size <= limit
    assert manifest()["budget"]["bytes"] <= limit


def test_a_killed_measurement_goes_on(
    llmc, budget, measurements: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, shown = sensitivity._Collected.finish, list[str]()

    def stopped(self: Any, place: str) -> Any:
        shown.append(place)
        if len(shown) == 2:
            raise KeyboardInterrupt
        return finish(self, place)

    monkeypatch.setattr(sensitivity._Collected, "finish", stopped)
    assert llmc("build", budget(bits=4.0)).exit_code == 130
    assert llmc("build", budget(bits=5.0)).exit_code == 0  # another budget goes on with the same measurement
    assert len(measurements) == 2
    assert len(shown) == len(set(shown)) + 1, "only the layer that was interrupted is shown again"
    resumed = manifest()
    assert llmc("build", budget(bits=5.0), "--fresh", "--output", "anew/small").exit_code == 0
    assert manifest("anew/small") == resumed


def test_rules_are_constraints(llmc, budget, known, small_model: Path) -> None:
    rules = [
        {"match": "attention", "least": "fp8-channel"},
        {"match": "experts", "scheme": ["int2-g32", "int4-g32"], "method": "rtn"},
        {"match": "dense_mlp", "scheme": "int4-g32", "method": "gptq"},
        {"match": "shared_experts", "scheme": AS_IS},
    ]
    built = llmc("build", budget(bits=5.0, quantize=rules))
    assert built.exit_code == 0, built.stderr
    checkpoint = Checkpoint.open(small_model)
    found = assign(checkpoint, [Rule(**rule) for rule in manifest()["recipe"]["quantize"]])
    of_role: dict[str, set[tuple[str, str]]] = {}
    for module, given in found.items():
        of_role.setdefault(checkpoint.role(f"{module}.weight"), set()).add((given.scheme.name, given.method))
    assert of_role["attention"] <= {("fp8-channel", "gptaq")}
    assert of_role["experts"] <= {("int2-g32", "rtn"), ("int4-g32", "rtn")} and of_role["experts"]
    assert of_role["dense_mlp"] == {("int4-g32", "gptq")}
    assert "shared_experts" not in of_role


@pytest.mark.parametrize("targets", [[{"onnxruntime": {}}], [{"onnxruntime": {}}, {"tensorrt-rtx": {"sm": [80]}}]])
def test_scales_are_those_that_all_targets_take(llmc, budget, monkeypatch: pytest.MonkeyPatch, targets) -> None:
    signs = list[set[tuple[float, ...]]]()

    def measure(checkpoint: Any, candidates: dict[str, list[Any]], *arguments: Any, **options: Any) -> Any:
        signs.append({each.signs for schemes in candidates.values() for each in schemes if each.name == "int4-g32"})
        raise InputError("seen")

    monkeypatch.setattr(sensitivity, "measure", measure)
    assert "seen" in llmc("sensitivity", budget(bits=5.0, targets=targets)).stderr
    assert signs == [{(1.0,) if len(targets) > 1 else (1.0, -1.0)}]


def test_one_matrix_for_both_ends_is_solved_as_a_head(
    llmc, budget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    solved = list[bool]()

    def measure(*arguments: Any, **options: Any) -> Any:
        solved.append("lm_head" in options["solved"])
        raise InputError("seen")

    monkeypatch.setattr(sensitivity, "measure", measure)
    tied = random_checkpoint(tmp_path / "tied", LLAMA | {"vocab_size": 288}, tie_word_embeddings=True)
    byte_tokenizer(tied)
    for method in ("gptq", "rtn"):
        rules = [{"match": "embedding", "scheme": "int4-g32", "method": method}]
        assert "seen" in llmc("sensitivity", budget(bits=9.0, model=str(tied), quantize=rules)).stderr
    assert solved == [True, False]


def test_sensitivity_and_plan(llmc, budget, measurements: list[set[str]]) -> None:
    path = budget(bits=5.0)
    before = llmc("plan", path)
    assert before.exit_code == 0 and "not measured yet" in before.stdout
    assert json.loads(llmc("plan", path, "--json").stdout)["budget"]["point"]["kl"] is None
    measured = llmc("sensitivity", path, "--json")
    assert measured.exit_code == 0, measured.stderr
    told = json.loads(measured.stdout)
    assert Path(told["path"]).exists() and not Path("build/small.work").exists()
    assert {"attention", "experts", "mtp"} <= {group["role"] for group in told["groups"].values()}

    plan = json.loads(llmc("plan", path, "--json").stdout)["budget"]
    assert plan == told["budget"] and plan["curve"][0]["kl"] > plan["point"]["kl"] > 0
    shown = llmc("plan", path).stdout
    assert "what sizes cost" in shown and "← bits: 5.0" in shown
    table = llmc("sensitivity", path).stdout
    assert "attention" in table and "█" in table
    assert llmc("build", path).exit_code == 0
    assert len(measurements) == 1
    assert manifest()["budget"]["predicted_kl"] == plan["point"]["kl"]
