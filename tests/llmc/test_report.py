"""report.json: made of the manifest, with the check text's worst tokens where that is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmc.card import model_card
from llmc.contracts.manifest import Manifest
from llmc.contracts.report import Report
from llmc.report import report_of
from llmc.summary import rows


def build(llmc, path: Path, out: str = "out") -> tuple[Manifest, Report]:
    made = llmc("build", path, "-o", out)
    assert made.exit_code == 0, made.output
    return tuple(
        kind.model_validate(json.loads((Path(out) / name).read_text()))
        for kind, name in ((Manifest, "llmc.json"), (Report, "report.json"))
    )


def test_a_build_leaves_its_report(llmc, recipe) -> None:
    manifest, report = build(llmc, recipe(targets=[]))
    assert "report.json" in manifest.files and report == report_of(manifest, report.worst)
    assert report.verdict == "no limits" and not report.files.keys() & {"README.md", "report.json", "report.html"}
    checks = report.checks
    assert checks and checks.kl_histogram and sum(checks.kl_histogram.counts) == checks.tokens
    assert checks.by_window and len(checks.by_window.kl) == 4
    assert sum(checks.by_window.kl) / 4 == pytest.approx(checks.kl_mean, rel=1e-5)
    assert [each.kl for each in report.worst] == [each.kl for each in checks.worst]
    assert all(each.token or each.before for each in report.worst)
    experts = {each.layer: each for each in report.experts}
    assert manifest.pruned and experts.keys() == {int(layer) for layer in manifest.pruned.survivors}
    for layer, each in experts.items():
        assert sum(each.load_original) == pytest.approx(1, abs=1e-4) and len(each.removed) == 2
        assert not {*each.removed} & {*manifest.pruned.survivors[str(layer)]}
    assert [each.error for each in report.layers][:2] == pytest.approx(manifest.layer_errors, rel=1e-5)
    assert sum(each.modules for each in report.treatments) == len(manifest.tensors)
    assert model_card(report) == (Path("out") / "README.md").read_text()
    assert dict(rows(report))["source"].startswith(report.source.id)


def test_what_is_not_published_is_not_in_the_report(llmc, recipe, text_file: Path) -> None:
    check: dict[str, Any] = {"text": str(text_file), "tokens": 256, "length": 64, "publish_text": False}
    _, report = build(llmc, recipe(targets=[], check=check))
    assert report.checks and report.checks.worst and report.worst == [] and not report.published_text
