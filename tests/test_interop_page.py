"""docs/interop.md says what was measured, and nothing of that is wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_the_page_is_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("interop_page", REPOSITORY / "ci" / "docs" / "interop.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = json.loads((REPOSITORY / "docs" / "interop.json").read_text(encoding="utf-8"))
    written = (REPOSITORY / "docs" / "interop.md").read_text(encoding="utf-8")
    assert module.page(found) == written, "run python ci/docs/interop.py"


def test_whoever_loads_a_model_says_the_same() -> None:
    found = json.loads((REPOSITORY / "docs" / "interop.json").read_text(encoding="utf-8"))
    measured = [row for row in found["rows"] if row["difference"] is not None]
    assert measured
    for row in measured:
        assert row["difference"] < found["limits"].get(row["reader"], found["limit"]), row
