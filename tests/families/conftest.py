"""Keeps how far each model line climbs: `pytest tests/families --ladder docs/models.json` writes it down.

A rung that a line does not reach is skipped with the reason, unless it has been reached before: docs/models.json says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.ladder import Climb, SmallModel, architecture_key, shared_key
from support.model_lines import LINES, ModelLine

RECORD = Path(__file__).parents[2] / "docs" / "models.json"
PROPERTY = "ladder"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ladder", type=Path, metavar="FILE", help="write what was climbed into this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--ladder", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("--ladder")))


class Recorder:
    """Collects reports, also those of pytest-xdist's workers; what was not tried stays as it is in the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY and (report.when == "call" or not report.passed):
                assert isinstance(value, dict)
                said = {key: each for key, each in value.items() if key not in ("line", "rung")}
                self.found.setdefault(value["line"], {})[value["rung"]] = _outcome(report) | said

    def pytest_sessionfinish(self) -> None:
        before = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        lines = {line.name: before.get(line.name, {}) | self.found.get(line.name, {}) for line in LINES}
        self.file.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


def _outcome(report: pytest.TestReport) -> dict[str, Any]:
    if report.passed:
        return {"reached": True}
    if report.skipped and isinstance(report.longrepr, tuple):
        return {"reached": False, "reason": report.longrepr[2].removeprefix("Skipped: ")}
    crash = getattr(report.longrepr, "reprcrash", None)
    return {"reached": False, "reason": f"fails: {crash.message.splitlines()[0] if crash else report.longrepr}"}


@pytest.fixture
def climb(request: pytest.FixtureRequest, line: ModelLine) -> Climb:
    rung = request.node.originalname.removeprefix("test_")
    said: dict[str, Any] = {}
    request.node.user_properties.append((PROPERTY, said))
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    before = record.get(line.name, {}).get(rung, {}).get("reached", False)
    return Climb(line, rung, said, before and not request.config.getoption("--ladder", None))


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SmallModel]:
    """Those that were made, by what they share."""
    return {}


@pytest.fixture
def architecture(climb: Climb, small: SmallModel, small_models: dict[str, SmallModel]) -> SmallModel:
    """The small model of the first line that has this line's architecture and features."""
    climb.accepted(small)
    return small_models.setdefault(architecture_key(small), small)


@pytest.fixture
def small(line: ModelLine, small_models: dict[str, SmallModel], tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    key = shared_key(line)
    if key not in small_models:
        small_models[key] = SmallModel(line, tmp_path_factory.mktemp("small"))
    return small_models[key]
