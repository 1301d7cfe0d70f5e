"""`llmc check --against`: what the build found, found again from two folders of weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.against import _Models
from llmc.contracts.against import AgainstRecord
from llmc.convert.checkpoint import Checkpoint
from llmc.quant import against


@pytest.fixture
def built(recipe, llmc) -> Path:
    """Of the small model, pruned and quantized; no target."""
    made = llmc("build", recipe(targets=[]), "-o", "out")
    assert made.exit_code == 0, made.output
    return Path("out")


def described(artifact: Path) -> dict[str, Any]:
    return dict(json.loads((artifact / "llmc.json").read_text()))


def test_it_finds_what_the_build_found(llmc, built: Path, small_model: Path) -> None:
    done = llmc("check", built, "--against", small_model, "--json")
    assert done.exit_code == 0, done.output
    found, manifest = json.loads(done.stdout), described(built)
    assert AgainstRecord.model_validate(found).to_json() == found
    exact, known = found["checks"], manifest["torch_checks"]
    assert exact.keys() == known.keys() - {"kl_sampled", "kl_sampling_stderr"} | {"kl_sampling_stderr"}
    for name in ("kl_mean", "kl_p999", "ppl", "ppl_original", "top1", "p_change", "kl_mean_stderr"):
        assert exact[name] == pytest.approx(known[name], rel=1e-6), name
    assert len(exact["worst_windows"]) == 4 and exact["worst_windows"] == known["worst_windows"]
    assert exact["kl_by_position"] == known["kl_by_position"] and exact["computed_by"] == "torch"
    assert [each["error"] for each in found["layers"]] == pytest.approx(manifest["layer_errors"])
    mine, its = (layers[1]["routing"] for layers in (found["layers"], manifest["layers"]))
    assert mine.pop("expert_errors") and mine == its
    assert found["notes"] == [] and (found["windows"], found["length"]) == (4, 64)
    shown = llmc("check", built, "--against", small_model).stdout
    assert "exact: over the whole vocabulary" in shown and "same set" in shown and "windows furthest from" in shown
    assert not list(Path().rglob("*.against"))


def test_a_checkpoint_without_a_manifest_on_several_texts(recipe, llmc, small_model: Path, text_file: Path) -> None:
    rules = [{"match": "experts", "scheme": "int4-g32"}]
    assert llmc("build", recipe(targets=[], layout="gptq", quantize=rules, prune=None), "-o", "out").exit_code == 0
    for name in ("llmc.json", "reference.safetensors"):
        (Path("out") / name).unlink()
    texts = "--text", text_file, "--text", "builtin:python-docs", "--tokens", "256", "--length", "64"
    done = llmc("check", "out", "--against", small_model, *texts, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["layout"] == "gptq" and found["checks"]["gates"] == [] and found["checks"]["kl_mean"] > 0
    assert [(each["text"], each["windows"]) for each in found["text"]] == [("words.txt", 2), ("builtin:python-docs", 2)]
    assert len(found["checks"]["kl_by_source"]) == 2


def test_gates_of_the_recipe_are_judged(recipe, llmc, small_model: Path, text_file: Path) -> None:
    check = {"text": str(text_file), "tokens": 256, "length": 64, "gates": {"kl_mean": 1e-9}}
    assert llmc("build", recipe(targets=[], check=check), "-o", "out").exit_code == 3
    done = llmc("check", "out.rejected", "--against", small_model)
    assert done.exit_code == 3 and "gate kl_mean" in done.stdout and "the weights alone are further" in done.stderr


def test_an_interrupted_comparison_goes_on(llmc, built: Path, small_model: Path, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(against._Pair, "_answer", stop)
        assert llmc("check", built, "--against", small_model).exit_code == 130
    assert list(Path("build/out.against").glob("*/errors-00001.json"))
    done = llmc("check", built, "--against", small_model)
    assert done.exit_code == 0 and "resumed: 2 of 3 layers were finished" in done.stderr
    assert not Path("build/out.against").exists()


def test_an_original_that_is_another_is_noticed(llmc, built: Path, small_model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(small_model, tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    done = llmc("check", built, "--against", other, "--json")
    assert json.loads(done.stdout)["notes"] == [f"{other} is not what the artifact was made from: config.json"]


def test_layers_that_no_measure_needs_are_missed(small_model: Path) -> None:
    original = Checkpoint.open(small_model)
    other = replace(original, spec=replace(original.spec, num_mtp_layers=0))
    told = "of 1 layers for multi-token prediction none are left; no measure shows that"
    assert _Models(original, other, None).notes("x") == [told]
    assert _Models(original, original, None).notes("x") == []


REFUSED = [
    (["--text", "builtin:python-docs"], 2, "--text: means nothing to a check without --against; leave it out"),
    (["--fresh"], 2, "--fresh: means nothing to a check without --against"),
    (["--against", "MODEL", "--backend", "onnxruntime"], 2, "--backend: means nothing to --against"),
    (["--against", "MODEL", "--length", "32"], 2, "--length: the text on record has windows of its own"),
    (["--against", "MODEL", "--text", "none.txt"], 2, "--text: there is no file none.txt"),
    (["--against", "builtin:tiny-deepseek-v3"], 2, "give the model that it was made from"),
    (["--against", "MODEL", "--output", "."], 2, "that is the folder llmc was started in"),
    (["--against", "MODEL", "--memory", "1MiB"], 4, "the comparison needs about"),
]


def test_what_cannot_be_done_is_said(llmc, built: Path, small_model: Path) -> None:
    for options, code, said in REFUSED:
        done = llmc("check", built, *(str(small_model) if each == "MODEL" else each for each in options))
        assert done.exit_code == code and said in done.stderr, done.stderr


def test_long_windows_by_both_models_and_by_the_runtime(recipe, llmc, small_model: Path) -> None:
    """Weights that are rounded alike: torch and ONNX Runtime say the same of the answers."""
    rules = [{"match": "attention", "scheme": "fp8-channel"}]
    targets = [{"onnxruntime": {"accuracy_level": 1}}]
    assert llmc("build", recipe(quantize=rules, targets=targets), "-o", "out").exit_code == 0
    done = llmc("check", "out", "--against", small_model, "--long", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["long"]
    assert [each["length"] for each in found] == [128]
    assert found[0]["logprob_original"] != found[0]["logprob"] and found[0]["change_stderr"] > 0
    assert found[0]["kl_mean"] > 0 and found[0]["kl_by_position"][-1]["last"] == 127
    alone = json.loads(llmc("check", "out", "--long", "--json").stdout)
    assert alone["context"] == 128 and "kl_mean" not in alone["lengths"][0]
    for name in ("logprob", "logprob_stderr", "by_depth", "recalled"):
        assert alone["lengths"][0][name] == pytest.approx(found[0][name], rel=1e-2), name
    shown = llmc("check", "out", "--long", "--longest", "100").stdout
    assert "found in long windows" in shown and "by where the sentence stands" in shown and "100 " in shown
    assert llmc("check", "out", "--longest", "100").exit_code == 2
