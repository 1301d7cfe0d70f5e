"""A real `llmc serve` in a process of its own, on a port of the system's choice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 300  # until it has started or ended, on a busy machine


@dataclass
class Served:
    """url: without a path; model: what clients call it"""

    process: subprocess.Popen[str]
    url: str
    model: str
    port: int

    def stop(self) -> int:
        """SIGTERM, and the exit code that comes of it."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_SECONDS)


@contextmanager
def served(artifact: Path, *options: str, **variables: str) -> Iterator[Served]:
    """Ends in peace, or the test fails. variables: of the environment"""
    command = [sys.executable, "-m", "llmc.cli", "serve", str(artifact), "--port", "0", "--threads", "1", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "LLMC_TOKEN"} | variables
    process = subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        told = json.loads(line)
        found = Served(process, told["url"], told["model"], int(told["url"].rpartition(":")[2]))
        yield found
        assert process.poll() is not None or found.stop() == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
