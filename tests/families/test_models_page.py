"""docs/models.md says what was found, of the lines and configurations that there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from support.ladder import RECORD
from support.model_lines import LINES, published_names

RUNGS = {"spec", "parity", "artifact", "graphs", "engine", "mtp"}


def test_the_page_is_what_was_found() -> None:
    script = Path(__file__).parents[2] / "ci/docs/models.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run python ci/docs/models.py\n{done.stderr}"


def test_what_was_found_is_of_every_line_and_configuration(record: dict[str, dict[str, Any]]) -> None:
    again = f"run pytest tests/families --ladder {RECORD.name}"
    assert [*record["lines"]] == [line.name for line in LINES], again
    assert [*record["configurations"]] == published_names(additional=True), again
    for name, rungs in record["lines"].items():
        assert rungs.keys() == RUNGS, (name, again)
        assert all(rung["reached"] or rung.get("absent") or rung["reason"] for rung in rungs.values()), name
    for name, found in record["configurations"].items():
        assert found.keys() in ({"reason"}, {"parameters", "bytes", "built_bytes"}), (name, again)
