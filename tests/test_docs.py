"""The documentation site builds without a warning or anything of the network, and its references are complete."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from llmc import runtime
from llmc.calibration_recipe import Calibration, Check, Gates
from llmc.cli import app
from llmc.convert.targets import targets
from llmc.recipe import Prune, Quantize, Recipe

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://localhost:1", "no_proxy": ""}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r'<(?:script|img|link|iframe)[^>]*\b(?:src|href)="((?:https?:)?//[^"]*)"')
    assert [found for page in site.rglob("*.html") for found in loaded.findall(page.read_text(encoding="utf-8"))] == []


def test_recipe_reference_has_every_key_and_target(site: Path) -> None:
    page = (site / "recipe.html").read_text(encoding="utf-8")
    for section in (Recipe, Calibration, Check, Gates, Prune, Quantize):
        for key in section.model_fields:
            assert f"<td><code>{key}</code></td>" in page, key
    assert all(f'<h3 id="{name}">' in page for name in targets.all)


def test_command_line_reference_has_every_command_and_option(site: Path) -> None:
    page = (site / "cli.html").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands = {f"llmc {name}": command for name, command in commands.items()}
    for name, command in commands.items():
        assert f'<h2 id="{name.replace(" ", "-")}">' in page
        for option in command.params:
            assert option.param_type_name == "argument" or option.opts[0] in page, option.name


def test_python_reference_has_every_exported_name(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    assert all(f'id="llmc.runtime.{name}"' in page for name in runtime.__all__)


def test_examples_are_shown(site: Path) -> None:
    shown = re.sub(r"<[^>]+>", "", (site / "program.html").read_text(encoding="utf-8"))
    for example in (REPOSITORY / "examples").glob("*.py"):
        last = example.read_text(encoding="utf-8").splitlines()[-1]
        assert last.strip() in html.unescape(shown), example.name


def test_links_into_the_repository_lead_somewhere() -> None:
    """Of the files that are read as they are, not as pages of the site."""
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "ci/bench/README.md", "recipes/checkpoints/README.md"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert (REPOSITORY / name).parent.joinpath(link).exists(), f"{name}: {link}"


def test_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    """Rounded as they are shown, row by row."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8").replace("**", "")
    bench = (REPOSITORY / "ci/bench/README.md").read_text(encoding="utf-8").replace("**", "")
    tools = {
        "llmc (GPTAQ, the default)": "llmc",
        "llmc, `method: gptq`": "llmc-gptq",
        "GPTQModel 7.6.0": "gptqmodel",
        "llm-compressor 0.14.0.1": "llmcompressor",
        "llmc, ONNX Runtime": "llmc",
        "llama.cpp Q4_0": "llama.cpp-q4_0",
        "llama.cpp Q4_K_M": "llama.cpp-q4_k_m",
    }
    decoding = bench.index("## Decoding")
    for line in readme.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] not in tools:
            continue
        quantizing = " s" in line
        tables = bench[:decoding] if quantizing else bench[decoding:]
        rows = [row.split("|")[3:] for row in tables.splitlines() if f"| {tools[cells[0]]} |" in row]
        assert len(rows) == 3, cells[0]
        for cell, row in zip(cells[1:], rows, strict=True):
            kl, speed = re.findall(r"[\d.]+", cell)[:2]
            column_kl, column_speed = (3, 0) if quantizing else (4, 2)
            assert float(kl) == round(float(row[column_kl]), len(kl.partition(".")[2])), cells[0]
            assert float(speed) == float(f"{float(row[column_speed]):.0f}"), cells[0]
    assert all(name in readme for name in tools)
