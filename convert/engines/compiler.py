"""Compiling in a child process: the library may abort, hang or run out of memory without taking the build along."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.contracts.engine import EngineTensor
from llmc.errors import MachineError, RefusedError
from llmc.tensorrt_package import TensorRTPackage

# What the compiler frees goes back to the system at once: measured, 1.4 GB instead of 2.0 for 0.6 GB of int4 weights.
_GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
Shapes = Mapping[str, Sequence[Sequence[int]]]  # input name → its smallest, usual and largest shape


@dataclass(frozen=True)
class CompiledEngine:
    """What the compiler says of an engine: its own version, and name, dtype and shape of inputs and outputs."""

    version: str
    inputs: list[EngineTensor]
    outputs: list[EngineTensor]


def compile_engine(
    package: TensorRTPackage,
    onnx: Path,
    engine: Path,
    sm: Sequence[int],
    profiles: Sequence[Shapes],
    timeout: float,
    progress: Callable[[float], None],
    kernels: Path | None = None,
) -> CompiledEngine:
    """Compile `onnx` for the compute capabilities `sm` (89 is 8.9), or the GPU that is there.

    Args:
        kernels: file with those of the plugins that are in the graph

    Writes `engine`, whole or not at all. Raises RefusedError where the compiler refuses the graph, MachineError where
    it dies or takes more than `timeout` seconds.
    """
    partial = engine.with_name(engine.name + ".partial")
    request = {
        "onnx": str(onnx),
        "engine": str(partial),
        "sm": list(sm) if package.targets_gpus else [],
        "profiles": [dict(each) for each in profiles],
        "kernels": None if kernels is None else str(kernels),
    }
    try:
        event = _run(package, json.dumps(request), f"compiling {engine.name}", timeout, progress)
        if event["event"] == "refused":
            at = f" at {event['node']}" if event["node"] else ""
            raise RefusedError(f"{package.title} refuses {engine.name}{at}: {event['reason']}", event["node"])
        partial.replace(engine)
    finally:
        partial.unlink(missing_ok=True)
    inputs, outputs = ([EngineTensor.model_validate(each) for each in event[key]] for key in ("inputs", "outputs"))
    return CompiledEngine(event["version"], inputs, outputs)


def _environment(package: TensorRTPackage, folder: Path) -> dict[str, str]:
    """In which the ONNX parser finds plugins: TensorRT-RTX's looks for their registry in a library without a version in
    its name, which the wheel does not hold, and ends the process if there is none.
    """
    spec = importlib.util.find_spec(f"{package.module}_libs")
    for place in spec.submodule_search_locations or () if spec else ():
        for library in Path(place).glob(f"lib{package.module}.so.*"):
            (folder / f"lib{package.module}.so").symlink_to(library)
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))} | _GIVES_BACK


def _run(
    package: TensorRTPackage, request: str, what: str, timeout: float, progress: Callable[[float], None]
) -> dict[str, Any]:
    """The last event of the child process."""
    # By path, so that the child imports the compiler and nothing of this package.
    script = Path(__file__).with_name("compiler_process.py")
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as libraries:
        child = subprocess.Popen(
            [sys.executable, "-P", str(script), package.module],
            env=_environment(package, Path(libraries)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert child.stdin and child.stdout
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            child.kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        event: dict[str, Any] = {}
        try:
            with contextlib.suppress(BrokenPipeError):  # it died before it read all; its end is told below
                child.stdin.write(request + "\n")
                child.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            for line in child.stdout:
                event = json.loads(line)
                if event["event"] == "progress":
                    progress(event["fraction"])
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            timer.cancel()
            child.stdout.close()
        if event.get("event") in ("built", "refused"):
            return event
        log.seek(0)
        said = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if timed_out.is_set():
        raise MachineError(
            f"{what}: not done after {timeout:.0f} s; raise `timeout` of the target, or build on a faster machine"
        )
    died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        died += ", as when memory runs out"
    raise MachineError(f"{what}: the compiler crashed ({died}); last output: {said[-1] if said else 'none'}")
