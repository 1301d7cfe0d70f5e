"""The harness finds what it is there to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, {here!r})
import harness
from hypothesis import strategies as st
from llmc.errors import InputError

def run(folder):
    number = (folder / "number").read_bytes()[0]
    if number > 200:
        {defect}
    raise InputError("fine")

target = harness.Target(st.binary(min_size=1, max_size=1).map(lambda data: {{"number": data}}), run)
harness.SECONDS = 0.05
with tempfile.TemporaryDirectory() as folder:
    findings = harness.fuzz(target, 100, 0, Path(folder), lambda done: None)
for group, found in findings.groups.items():
    print(group, found.count, found.case["number"][0] > 200)
"""


@pytest.mark.parametrize(
    ("defect", "kind"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("while True: pass", "TooSlow"),
        ("bytearray(3 << 30)", "MemoryError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("pass", ""),
    ],
)
def test_a_defect_is_a_finding(defect: str, kind: str) -> None:
    script = SCRIPT.format(here=str(Path(__file__).parent), defect=defect)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [kind] * bool(kind), result.stdout
    assert all(line.endswith("True") for line in lines)
