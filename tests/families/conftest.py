"""Keeps how far each model line climbs: `pytest tests/families --ladder docs/models.json` writes it down.

A rung that a line does not reach is skipped with the reason, unless it has been reached before: docs/models.json says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.ladder import CONFIGURATION, LINE, RECORD, Climb, SmallModel, architecture_key, read_record, shared_key
from support.model_lines import LINES, ModelLine, published_names


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ladder", type=Path, metavar="FILE", help="write what was climbed into this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--ladder", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("--ladder")))


class Recorder:
    """Collects reports, also those of pytest-xdist's workers; what was not tried stays as it is in the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.record = read_record(file)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, said in report.user_properties:
            if report.when != "call" and report.passed:
                continue
            if name == LINE:
                assert isinstance(said, dict)
                rungs = self.record["lines"].setdefault(said["line"], {})
                rungs[said["rung"]] = _outcome(report) | {k: v for k, v in said.items() if k not in ("line", "rung")}
            if name == CONFIGURATION:
                assert isinstance(said, dict)
                self.record["configurations"][said["name"]] = {k: v for k, v in said.items() if k != "name"}
            if name in (LINE, CONFIGURATION):  # at once: a run of minutes may be stopped
                self._write()

    def _write(self) -> None:
        known = {"lines": [line.name for line in LINES], "configurations": published_names(additional=True)}
        kept = {part: {name: self.record[part].get(name, {}) for name in names} for part, names in known.items()}
        self.file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _outcome(report: pytest.TestReport) -> dict[str, Any]:
    if report.passed:
        return {"reached": True}
    if report.skipped and isinstance(report.longrepr, tuple):
        return {"reached": False, "reason": report.longrepr[2].removeprefix("Skipped: ")}
    crash = getattr(report.longrepr, "reprcrash", None)
    return {"reached": False, "reason": f"fails: {crash.message.splitlines()[0] if crash else report.longrepr}"}


@pytest.fixture(scope="session")
def record() -> dict[str, dict[str, Any]]:
    """What was found when docs/models.json was written."""
    return read_record(RECORD)


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> bool:
    """Whether this run writes it anew."""
    return request.config.getoption("--ladder", None) is not None


@pytest.fixture
def climb(request: pytest.FixtureRequest, line: ModelLine, record: dict[str, dict[str, Any]], recording: bool) -> Climb:
    rung = request.node.originalname.removeprefix("test_")
    said: dict[str, Any] = {}
    request.node.user_properties.append((LINE, said))
    before = record["lines"].get(line.name, {}).get(rung, {}).get("reached", False)
    return Climb(line, rung, said, before and not recording)


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
