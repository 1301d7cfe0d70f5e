"""kill -9 at any moment: the next run goes on and ends in the same bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.folder_contents import contents
from support.killable_build import finish, start

from llmc.errors import InputError
from llmc.pipeline import build

pytestmark = pytest.mark.slow


@pytest.fixture
def small(recipe, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A recipe, and what an uninterrupted build makes of it."""
    path = recipe(targets=[{"onnxruntime": {}}, {"onnx": {}}])
    finish(path, tmp_path / "whole")
    return path, contents(tmp_path / "whole")


def test_builds_killed_twenty_times_end_in_the_same_bytes(small, tmp_path: Path) -> None:
    path, expected = small
    usual, generator = finish(path, tmp_path / "second"), random.Random(20)
    kills = 0
    while kills < 20:
        output = tmp_path / f"killed-{kills}"
        for _ in range(5):
            if not killed_after(generator.random() * usual / 2, path, output):
                break  # it was done by then
            kills += 1
            assert not output.exists() or contents(output) == expected  # absent or complete
        finish(path, output)
        assert contents(output) == expected
        assert not output.with_name(f"{output.name}.work").exists()


def test_a_disk_that_is_full_in_the_middle(small, tmp_path: Path) -> None:
    """One clear line; what was finished is kept, and is not done again once there is room."""
    path, expected = small
    output = tmp_path / "full"
    largest = max(len(data) for name, data in expected.items() if name.startswith("model-"))
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest - 1},) * 2)"
    code += "\nfrom llmc.cli import main; main()"
    command = [sys.executable, "-c", code, "build", str(path), "--output", str(output)]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 4
    assert "no space left on the disk; free some" in failed.stderr.splitlines()[-1]
    assert list(output.with_name("full.work").rglob("layer-00000.json")) and not output.exists()
    finish(path, output)
    assert contents(output).keys() == expected.keys()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prune": {"keep": 0.5}}, "another prune;"),
        ({"calibration": {"samples": 9, "length": 64}}, "another calibration and check text;"),
        ({"quantize": [{"match": "experts", "scheme": "int8-g32"}]}, "another quantize;"),
    ],
)
def test_an_interrupted_build_of_something_else_is_not_thrown_away(
    recipe, tmp_path: Path, change: dict[str, Any], named: str, text_file: Path
) -> None:
    if "calibration" in change:
        change["calibration"]["text"] = str(text_file)
    output = tmp_path / "output"
    work = output.with_name("output.work")
    process = start(recipe(), output)
    while process.is_alive() and not list(work.glob("*/scratch/layer-*.json")):
        time.sleep(0.005)
    process.kill()
    process.join()
    before = contents(work)
    with pytest.raises(InputError, match=named):
        build(recipe(**change), output)
    assert contents(work) == before
    assert build(recipe(**change), output, fresh=True).path == output


def killed_after(delay: float, recipe: Path, output: Path) -> bool:
    process = start(recipe, output)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
