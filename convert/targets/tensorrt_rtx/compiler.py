"""Compiling in a child process: the library may abort, hang or run out of memory without taking the build along."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.errors import InputError, MachineError, MissingPackageError

# Input name -> (smallest, usual, largest) shape.
Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]


def require_tensorrt_rtx() -> None:
    """MissingPackageError if the compiler is not installed."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise MissingPackageError(
            "target tensorrt-rtx: TensorRT-RTX is not installed on this machine; pip install 'llmc[rtx]'"
        )


def compile_engine(
    onnx: Path,
    engine: Path,
    sm: Sequence[int],
    profiles: Sequence[Profile],
    timeout: float,
    progress: Callable[[float], None],
) -> dict[str, Any]:
    """Compile `onnx` for the compute capabilities `sm` (89 is 8.9) and write `engine`, whole or not at all.

    Returns the compiler's "version", and "inputs" and "outputs" with name, dtype and shape each (-1 where it may
    vary). Raises InputError with node and reason where the compiler refuses the graph, MachineError where it dies or
    takes more than `timeout` seconds.
    """
    partial = engine.with_name(engine.name + ".partial")
    request = {"onnx": str(onnx), "engine": str(partial), "sm": list(sm), "profiles": [dict(p) for p in profiles]}
    try:
        event = _run(json.dumps(request), f"compiling {engine.name}", timeout, progress)
        if event["event"] == "refused":
            at = f" at {event['node']}" if event["node"] else ""
            raise InputError(f"TensorRT-RTX refuses {engine.name}{at}: {event['reason']}")
        partial.replace(engine)
    finally:
        partial.unlink(missing_ok=True)
    return {key: event[key] for key in ("version", "inputs", "outputs")}


def _run(request: str, what: str, timeout: float, progress: Callable[[float], None]) -> dict[str, Any]:
    """The last event of the child process."""
    # By path, so that the child imports TensorRT-RTX and nothing of this package.
    script = Path(__file__).with_name("compiler_process.py")
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-P", str(script)],
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
    raise MachineError(f"{what}: the compiler died ({died}); its last words: {said[-1] if said else 'none'}")
