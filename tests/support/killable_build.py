"""Builds in processes that can be killed."""

import io
import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich.console import Console

# Every build is forked from a process that has imported everything already, so that most of its time is work.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["llmc.pipeline", "llmc.runtime.model", "llmc.convert.targets.onnxruntime"])


def run_build(recipe: str, output: str) -> None:
    import torch

    from llmc.pipeline import build
    from llmc.progress import Display

    torch.set_num_threads(1)
    build(recipe, output, progress=Display(Console(file=io.StringIO())))


def start(recipe: Path, output: Path) -> BaseProcess:
    """A build that has begun to work: its work directory is there."""
    process = FORK.Process(target=run_build, args=(str(recipe), str(output)))
    process.start()
    work = output.with_name(f"{output.name}.work")
    while process.is_alive() and not work.exists():
        time.sleep(0.002)
    return process


def finish(recipe: Path, output: Path) -> float:
    """Seconds of work."""
    process = start(recipe, output)
    begin = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begin
