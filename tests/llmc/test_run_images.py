"""`llmc build`, `plan` and `run` of a model that takes images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.nvlm import nvlm, recipe_of
from typer.testing import CliRunner, Result

from llmc.cli import app


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    nvlm(folder / "source")
    content = {"name": "seeing"} | recipe_of(folder / "source", text_file)
    (folder / "recipe.yaml").write_text(json.dumps(content))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def artifact(recipe: Path) -> Path:
    done = invoke("build", recipe, "--output", recipe.parent / "artifact")
    assert done.exit_code == 0, done.stderr
    return recipe.parent / "artifact"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(path)
    return path


def invoke(*arguments: str | Path, lines: str = "") -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], input=lines)


def said(artifact: Path, *options: str | Path) -> dict[str, Any]:
    done = invoke("run", artifact, "--max-new-tokens", "6", "--json", *options)
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_plan(recipe: Path) -> None:
    """The tower keeps its size, and what is not as usual is said."""
    done = invoke("plan", recipe, "--json")
    planned = json.loads(done.stdout)
    vision = planned["roles"]["vision"]
    assert vision["before"] == vision["after"] and vision["before"]["bytes"] > 0
    assert any("take images" in note for note in planned["notes"])


def test_question_about_an_image(artifact: Path, photo: Path) -> None:
    """It is a chat, whose template shows the image; without one, the text has the image in front."""
    seen = said(artifact, "--image", photo, "--prompt", "What?")
    blind = said(artifact, "--prompt", "What?", "--chat")
    plain = said(artifact, "--image", photo, "--prompt", "What?", "--no-chat")
    template = blind["prompt_tokens"] - len("What?")
    assert seen["prompt_tokens"] == plain["prompt_tokens"] + template > blind["prompt_tokens"]
    assert seen["token_ids"] != blind["token_ids"]
    assert seen == said(artifact, "--image", photo, "--prompt", "What?")
    assert plain["prompt_tokens"] > said(artifact, "--prompt", "What?", "--no-chat")["prompt_tokens"]


def test_conversation_about_an_image(artifact: Path, photo: Path) -> None:
    done = invoke(
        "run", artifact, "--image", photo, "--max-new-tokens", "4", "--statistics", lines="What?\nAnd?\n/clear\nWhat?\n"
    )
    assert done.exit_code == 0, done.stderr
    counts = [int(line.split()[0]) for line in done.stderr.splitlines() if "prompt tokens" in line]
    assert len(counts) == 3 and counts[0] == counts[2] < counts[1]


def test_errors_are_one_line(artifact: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    for options, line in (
        (("--image", tmp_path / "words.txt"), f"llmc: {tmp_path / 'words.txt'}: no image that can be read; give"),
        (("--image", tmp_path / "none.png"), f"llmc: {tmp_path / 'none.png'}: "),
        (("--image", photo) * 30, "llmc: 30 images are "),
    ):
        done = invoke("run", artifact, "--prompt", "What?", *options)
        assert done.exit_code == 2
        assert done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr


def test_card_says_who_loads_it(artifact: Path) -> None:
    card = (artifact / "README.md").read_text()
    assert "transformers has no class for it" in card
    assert "transformers loads" not in card and "pipeline_tag: image-text-to-text" in card
