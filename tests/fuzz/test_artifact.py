"""Damaged artifacts end in errors of llmc's own. `python tests/fuzz/harness.py artifact --cases 100000` tries more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_damaged_artifacts() -> None:
    command = [sys.executable, Path(__file__).with_name("harness.py"), "artifact", "--cases", "2000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
