"""kill -9 at any moment: the next run goes on and ends in the same bytes."""

import random
import signal
import time
from pathlib import Path

from killable_build import finish, start

MOMENTS = random.Random(20).choices(range(5, 95), k=5)  # per cent of the time that a build takes


def contents(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


def test_killed_builds_end_in_the_same_bytes(recipe, tmp_path: Path) -> None:
    path = recipe(targets=[{"onnxruntime": {}}, {"onnx": {}}])
    whole = finish(path, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    resumed = 0
    for moment in MOMENTS:
        output = tmp_path / f"killed-{moment}"
        process = start(path, output)
        time.sleep(whole * moment / 100)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            assert not output.exists()
            resumed += 1
        finish(path, output)
        assert contents(output) == expected
        assert not output.with_name(f"{output.name}.work").exists()
    assert resumed >= 3  # a busy machine may have made the first build slow and a later one finish early
