"""`optimum-cli export llmc`, the program itself; that installing llmc is enough for it is in test_packaging.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import llmc

REPOSITORY = Path(__file__).parents[2]


def export(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "ci/packaging")}
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "llmc", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_artifact_is_that_of_a_build(recipe, small_model: Path, tmp_path: Path) -> None:
    for_any = recipe(model=None)
    made = export(small_model, tmp_path / "out", "--recipe", for_any, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["path"] == str(tmp_path / "out")
    assert told["manifest"]["pruned"]["experts_after"] == 6
    with llmc.load(tmp_path / "out") as model:
        assert len(model.generate("hello", max_new_tokens=4).token_ids) == 4
    again = llmc.build(for_any, tmp_path / "out", model=str(small_model))
    assert again.up_to_date


def test_errors_are_llmcs(recipe, small_model: Path, tmp_path: Path) -> None:
    for arguments, code, line in (
        ((tmp_path / "nothing", "out"), 2, "llmc: "),
        ((small_model, tmp_path / "out", "--memory", "1MB"), 4, "llmc: "),
        ((small_model, tmp_path / "out", "--recipe", "quickstrat"), 2, "llmc: quickstrat: no such recipe"),
        ((small_model, tmp_path / "out", "--recipe", small_model), 2, f"llmc: {small_model}: a model, and"),
    ):
        failed = export(*arguments)
        assert failed.returncode == code, failed.stderr
        assert failed.stdout == "" and failed.stderr.splitlines()[-1].startswith(line), failed.stderr
    assert "Traceback" not in failed.stderr and not (tmp_path / "out").exists()


def test_optimum_starts_without_what_builds_need() -> None:
    heavy = ("torch", "onnx", "numpy", "llmc.cli")
    code = f"import sys, llmc.optimum_command; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
