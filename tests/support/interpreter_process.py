"""Triton reads TRITON_INTERPRET when it is imported: tests of kernels compute in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1])


def run_interpreted(script: str, results: Path) -> None:
    """Runs a test module as a program, with the file that it writes its results into."""
    path = os.pathsep.join(filter(None, [_TESTS, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, script, results], env=environment, check=True)
