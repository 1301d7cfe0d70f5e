"""`llmc sweep`: what pruning costs, fraction by fraction."""

import json
from pathlib import Path


def test_sweep(llmc, recipe, tmp_path: Path) -> None:
    result = llmc("sweep", recipe(prune=None), "--method", "reap", "--method", "frequency", "--json")
    assert result.exit_code == 0, result.stderr
    steps = json.loads(result.stdout)
    assert [(step["method"], step["keep"]) for step in steps] == [
        (method, keep) for method in ("reap", "frequency") for keep in (1.0, 0.75, 0.5)
    ]
    whole, three_quarters, half = steps[:3]
    assert whole["ppl"] == whole["ppl_original"] and whole["kl"] < 1e-9
    assert 0 < three_quarters["kl"] < half["kl"]
    assert not list((tmp_path / "cwd" / "build").glob("*"))


def test_sweep_with_the_recipes_rules_and_one_fraction(llmc, recipe) -> None:
    result = llmc("sweep", recipe(prune=None), "--keep", "1", "--quantize", "--json")
    (step,) = json.loads(result.stdout)
    assert step["kl"] > 1e-6


def test_what_cannot_be_swept(llmc, recipe) -> None:
    assert "prune.keep 0.9 would leave" in llmc("sweep", recipe(prune=None), "--keep", "0.9").stderr
    assert "did you mean 'reap'?" in llmc("sweep", recipe(prune=None), "--method", "reip").stderr
