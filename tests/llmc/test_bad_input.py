"""What is wrong is said in one line, with the right exit code, and leaves nothing behind."""

import errno
import json
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmc import machine


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        change(weights)
        save_file(weights, model / "model.safetensors")

    return apply


def truncate(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def edit_config(**fields: object) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | fields
        (model / "config.json").write_text(json.dumps(config))

    return apply


def index_outside(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    shutil.move(model / "model.safetensors", model.parent / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "../elsewhere.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def only_pickle(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({}))


EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"


def nan(weights: dict[str, torch.Tensor]) -> None:
    weights[EXPERT][3, 3] = float("nan")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (truncate, ["model.safetensors", "truncated"]),
        (rewrite(lambda w: w.update({EXPERT: w[EXPERT].to(torch.int32)})), [EXPERT, "I32"]),
        (rewrite(lambda w: w.pop(EXPERT)), [EXPERT, "missing"]),
        (rewrite(lambda w: w.update({EXPERT: w[EXPERT][:, :5].contiguous()})), [EXPERT, "shape"]),
        (rewrite(nan), [EXPERT, "NaN"]),
        (index_outside, ["index.json", "../elsewhere.safetensors"]),
        (only_pickle, ["pytorch_model.bin", "pickle"]),
        (edit_config(architectures=["MambaForCausalLM"]), ["MambaForCausalLM", "DeepseekV3ForCausalLM"]),
        (edit_config(hidden_size="64"), ["config.json", "hidden_size"]),
        (lambda model: (model / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (lambda model: (model / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_checkpoint(llmc, recipe, small_model: Path, tmp_path: Path, damage, parts: list[str]) -> None:
    model = Path(shutil.copytree(small_model, tmp_path / "broken"))
    damage(model)
    made = llmc("build", recipe(model=str(model)))
    assert made.exit_code == 2, made.output
    error = made.stderr.strip().splitlines()[-1]
    assert error.startswith("llmc: ")
    for part in parts:
        assert part in error
    assert nothing_but_a_log()


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_infinity_at_the_ends_is_found_before_any_layer(llmc, recipe, small_model: Path, tmp_path: Path, name) -> None:
    model = Path(shutil.copytree(small_model, tmp_path / "broken"))
    rewrite(lambda weights: weights[name].view(-1)[-1:].fill_(float("inf")))(model)
    made = llmc("build", recipe(model=str(model)))
    assert made.exit_code == 2, made.output
    assert f"model.safetensors: tensor {name} holds NaN or infinity" in made.stderr
    assert "quantize" not in made.stderr
    assert nothing_but_a_log()


def nothing_but_a_log() -> bool:
    return not Path("build").exists() or [file.suffix for file in Path("build").iterdir()] == [".log"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"quantise": []}, "did you mean 'quantize'?"),
        ({"model": "nowhere/at/all"}, "there is no folder"),
        ({"model": "builtin:tiny-deepsek"}, "did you mean"),
        ({"prune": {"keep": 0.7}}, "use one of 0.5, 0.75, 1"),
        ({"quantize": [{"match": "experts", "scheme": "int4-g128"}]}, "int4-g32"),
        ({"quantize": [{"match": "re:nothing", "scheme": "int4-g32"}]}, "matches nothing"),
        ({"check": {"text": "missing.txt"}}, "missing.txt"),
        ({"check": {"text": __file__, "tokens": 100_000}}, "give more text"),
    ],
)
def test_wrong_recipe(llmc, recipe, changes, part: str) -> None:
    made = llmc("build", recipe(**changes))
    assert made.exit_code == 2, made.output
    assert part in made.stderr.strip().splitlines()[-1]
    assert nothing_but_a_log()


def test_neither_recipe_nor_model(llmc) -> None:
    made = llmc("plan", "no-such-recipe")
    assert made.exit_code == 2
    assert "quickstart" in made.stderr


def test_no_disk_space_is_predicted(llmc, recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 1000)
    made = llmc("build", recipe())
    assert made.exit_code == 4
    assert "only 1.0 kB are free" in made.stderr
    assert nothing_but_a_log()


def test_disk_full_in_the_middle(recipe, tmp_path: Path) -> None:
    """The kernel refuses to let any file grow past a limit; without it, the same build goes on and succeeds."""
    path, output = recipe(), tmp_path / "out"

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the limit kills
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    command = [sys.executable, "-m", "llmc.cli", "build", str(path), "--output", str(output)]
    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert full.returncode == 4, full.stderr
    error = full.stderr.strip().splitlines()[-1]
    assert error.startswith("llmc: ")
    assert "no space left" in error
    assert not output.exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert output.exists()


def test_disk_full_anywhere_is_a_machine_error(llmc, recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc import pipeline

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "README.md")

    monkeypatch.setattr(pipeline, "hash_files_of", full)
    made = llmc("build", recipe())
    assert made.exit_code == 4
    assert "README.md: no space left on the disk" in made.stderr
    assert not Path("build/small").exists()


@pytest.mark.parametrize("command", [("run", "--prompt", "a"), ("check",), ("inspect",)])
def test_not_an_artifact(llmc, tmp_path: Path, command: tuple[str, ...]) -> None:
    made = llmc(command[0], tmp_path, *command[1:])
    assert made.exit_code == 2
    assert str(tmp_path) in made.stderr


def test_usage_errors(llmc) -> None:
    assert llmc("build").exit_code == 2
    assert llmc("biuld", "x").exit_code == 2
    assert llmc("run", "x").exit_code == 2


def test_overflow_in_the_last_layer_keeps_the_work(llmc, recipe, small_model: Path, tmp_path: Path) -> None:
    """The blame is not the download's, and the layer before it is not done again."""
    model, weight = Path(shutil.copytree(small_model, tmp_path / "huge")), "model.layers.1.self_attn.o_proj.weight"
    rewrite(lambda weights: weights[weight].mul_(1e30))(model)
    path = recipe(model=str(model))
    for _ in range(2):
        made = llmc("build", path)
        assert made.exit_code == 2, made.output
        error = made.stderr.strip().splitlines()[-1]
        assert "model.layers.1: the original model's activations" in error
        assert weight in error
        assert "download" not in error
        kept = sorted(file.name for file in Path("build/small.work").rglob("layer-*.json"))
        assert kept == ["layer-00000.json"]
