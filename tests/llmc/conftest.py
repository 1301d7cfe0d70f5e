"""Recipes for the small model, and the command line run inside the test."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from llmc.cli import app

Recipe = Callable[..., Path]
Llmc = Callable[..., Result]


@pytest.fixture(autouse=True)
def speed_is_measured_shortly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every build's answers; test_quickstart.py measures as long as users' builds do."""
    if request.path.name != "test_quickstart.py":
        monkeypatch.setattr("llmc.runtime.drafts._PROMPTS", 2)


@pytest.fixture(scope="session")
def audited_artifact(small_model: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the small model, pruned and coarse enough that answers change."""
    from llmc.pipeline import build
    from llmc.progress import Display

    folder = tmp_path_factory.mktemp("built")
    recipe = {
        "model": str(small_model),
        "calibration": {"text": str(text_file), "samples": 4, "length": 32},
        "quantize": [{"match": "experts", "scheme": "int4-g32", "method": "rtn"}],
        "prune": {"keep": 0.5},
        "targets": [{"onnxruntime": {"accuracy_level": 1}}],
        "check": {"text": str(text_file), "tokens": 64, "length": 32},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    return build(str(folder / "small.yaml"), folder / "small", progress=Display(Console(file=io.StringIO()))).path


@pytest.fixture(scope="session")
def two_artifacts(small_model: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One that keeps its limits, and one that was rejected for missing them."""
    from llmc.pipeline import build

    folder = tmp_path_factory.mktemp("published")
    recipe: dict[str, Any] = {
        "name": "small",
        "model": str(small_model),
        "calibration": {"text": str(text_file), "samples": 4, "length": 32},
        "quantize": [{"match": "experts", "scheme": "int4-g32", "method": "rtn"}],
        "check": {"text": str(text_file), "tokens": 64, "length": 32, "gates": {"kl_mean": 1e-9}},
    }
    rejected = build(recipe, folder / "small").path
    kept = rejected.rename(folder / "kept")
    recipe["check"]["gates"] = {"kl_mean": 5.0}
    return build(recipe, folder / "small").path, kept


@pytest.fixture
def recipe(tmp_path: Path, small_model: Path, text_file: Path) -> Recipe:
    """Writes small.yaml; keyword arguments replace whole keys of it, None removes one."""

    def write(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "model": str(small_model),
            "calibration": {"text": str(text_file), "samples": 8, "length": 64},
            "prune": {"keep": 0.75},
            "quantize": [
                {"match": "experts", "scheme": "int4-g32"},
                {"match": "attention", "scheme": "fp8-block"},
            ],
            "targets": [{"onnxruntime": {}}],
            "check": {"text": str(text_file), "tokens": 256, "length": 64},
        } | changes
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


@pytest.fixture
def llmc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Llmc:
    """`llmc("build", …)` in an empty directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
