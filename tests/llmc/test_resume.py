"""kill -9 at any moment: the next run goes on and ends in the same bytes."""

import random
import shutil
import signal
import time
from pathlib import Path

from killable_build import finish, start

MOMENTS = random.Random(20).sample(range(100), 5)  # per cent of the time that a build takes


def contents(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


def test_killed_builds_end_in_the_same_bytes(recipe, tmp_path: Path) -> None:
    path = recipe(targets=[{"onnxruntime": {}}, {"onnx": {}}])
    finish(path, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    usual = finish(path, tmp_path / "second")
    for moment in MOMENTS:
        output = tmp_path / f"killed-{moment}"
        delay = usual * moment / 100
        while not killed_after(delay, path, output):  # it was done by then
            shutil.rmtree(output)
            delay *= 0.8
        assert not output.exists() or contents(output) == expected  # absent or complete
        finish(path, output)
        assert contents(output) == expected
        assert not output.with_name(f"{output.name}.work").exists()


def killed_after(delay: float, recipe: Path, output: Path) -> bool:
    process = start(recipe, output)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
