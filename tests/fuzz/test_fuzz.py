"""A fixed set of damaged inputs for each target, in a process of its own; harness.py runs more of them by command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HARNESS = Path(__file__).parent / "harness.py"
TARGETS = sorted(path.stem.removeprefix("target_") for path in HARNESS.parent.glob("target_*.py"))
CASES = 2000


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_ends_in_a_result_or_in_an_error_of_llmc(target: str) -> None:
    command = [sys.executable, str(HARNESS), target, "--cases", str(CASES)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert f"{target}: {CASES:,} cases, 0 findings" in result.stdout
