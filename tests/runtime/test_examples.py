"""Every program in examples/ runs, on a small artifact or a small recipe, and says what it is there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# What each has to print, as a pattern.
PRINTED = {
    "generate.py": r"onnxruntime.*\[(stop|length)\]\n\d+ tokens in \d+ steps\n\d+ of \d+ drafts accepted\n['\"]",
    "stream.py": r".{60}.*\n\[cancelled after \d+ tokens\]\n$",
    "chat.py": r"user: What does os.getcwd return\?\nassistant: .*user: And os.sep\?\nassistant: ",
    "batch_and_sessions.py": r"'def main\(.*'class Error\(.*\n([1-9]\d*) of \d+ .*\n\1 of \d+ .*\nTokenLogprob\(",
    "check.py": r"perplexity [\d.]+ ± [\d.]+ → .*of 764 tokens agree\nppl_increase: .* limit 0.05, passed\n",
}


def run(name: str, *arguments: str | Path) -> str:
    ran = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == PRINTED.keys() | {"build.py"}


@pytest.mark.parametrize("name", PRINTED)
def test_example(name: str, trained: Path) -> None:
    assert re.search(PRINTED[name], run(name, trained), re.DOTALL)


def test_build_example(small_model: Path, text_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"model: {small_model}\n"
        f"calibration: {{text: {text_file}, samples: 2, length: 32}}\n"
        "quantize: [{match: experts, scheme: int4-g32}]\n"
        f"check: {{text: {text_file}, tokens: 64, length: 32}}\n"
    )
    said = run("build.py", recipe, tmp_path / "artifact")
    assert re.search(
        r"artifact: [\d,]+ → [\d,]+ bytes \nperplexity [\d.]+ → [\d.]+, KL divergence [\d.]+ \(sampled\)\n$", said
    )
    assert (tmp_path / "artifact" / "llmc.json").exists()
