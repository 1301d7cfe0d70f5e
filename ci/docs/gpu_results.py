"""The page of what ci/gpu/all.py has found on GPUs, from the files that it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "gpu" / "results"
INTRODUCTION = """# On GPUs

llmc is developed on machines without a GPU. `PYTHONPATH=. python ci/gpu/all.py` runs all checks that need one, from a
source tree, in a few minutes: kernels and solver against float64 and against their peers, their speed, and whether an
engine loads, runs and says what the original said. What it wrote to `ci/gpu/results/` stands here.
"""


def page(results: Path = RESULTS) -> str:
    """Return the page, as Markdown."""
    files = sorted(results.glob("*.json"))
    if not files:
        return f"{INTRODUCTION}\n**No run has been recorded yet.**\n"
    return "\n".join([INTRODUCTION, *(line for file in files for line in _gpu(json.loads(file.read_text("utf-8"))))])


def _gpu(found: dict[str, Any]) -> Iterator[str]:
    yield f"## {found['gpu']}\n"
    versions = f"torch {found['torch']}, Triton {found['triton']}, CUDA {found['cuda']}"
    yield f"SM {found['sm']}, {found['date']}, {versions}.\n"
    yield from _table(["check", "seconds", "result"], [_row(check) for check in found["checks"]])
    for check in found["checks"]:
        for table in check["tables"]:
            yield f"### {check['check']}: {table['title'] or 'results'}\n"
            yield from _table(table["columns"], table["rows"])
            if table["caption"]:
                yield f"{table['caption']}\n"


def _row(check: dict[str, Any]) -> list[str]:
    return [check["check"], str(check["seconds"]), check["result"]]


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |"
    yield ""
