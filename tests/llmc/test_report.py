"""report.json: made of the manifest, with the check text's worst tokens where that is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.reports import manifest

from llmc.card import model_card
from llmc.contracts.manifest import Manifest
from llmc.contracts.part import checked
from llmc.contracts.report import Report
from llmc.errors import InputError
from llmc.page import report_page
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
    built, report = build(llmc, recipe(targets=[]))
    assert "report.json" in built.files and report == report_of(built, report.worst)
    assert report.verdict == "no limits" and not report.files.keys() & {"README.md", "report.json", "report.html"}
    checks = report.checks
    assert checks and checks.kl_histogram and sum(checks.kl_histogram.counts) == checks.tokens
    assert checks.by_window and len(checks.by_window.kl) == 4
    assert sum(checks.by_window.kl) / 4 == pytest.approx(checks.kl_mean, rel=1e-5)
    assert [each.kl for each in report.worst] == [each.kl for each in checks.worst]
    assert all(each.token or each.before for each in report.worst)
    experts = {each.layer: each for each in report.experts}
    assert built.pruned and experts.keys() == {int(layer) for layer in built.pruned.survivors}
    for layer, each in experts.items():
        assert sum(each.load_original) == pytest.approx(1, abs=1e-4) and len(each.removed) == 2
        assert not {*each.removed} & {*built.pruned.survivors[str(layer)]}
    assert [each.error for each in report.layers][:2] == pytest.approx(built.layer_errors, rel=1e-5)
    assert sum(each.modules for each in report.treatments) == len(built.tensors)
    assert model_card(report) == (Path("out") / "README.md").read_text()
    assert dict(rows(report))["source"].startswith(report.source.id)


def test_what_is_not_published_is_not_in_the_report(llmc, recipe, text_file: Path) -> None:
    check: dict[str, Any] = {"text": str(text_file), "tokens": 256, "length": 64, "publish_text": False}
    _, report = build(llmc, recipe(targets=[], check=check))
    assert report.checks and report.checks.worst and report.worst == [] and not report.published_text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kl_histogram", {"edges": [1.0], "counts": [0, 0]}),
        ("kl_histogram", {"edges": [1.0, 0.5], "counts": [1, 1, 1]}),
        ("kl_histogram", {"edges": [], "counts": [1]}),
        ("by_window", {"kl": [1.0], "surprise_original": [1.0], "surprise": [], "top1": [1.0]}),
    ],
)
def test_what_does_not_hold_together_is_refused(name: str, value: dict[str, Any]) -> None:
    document = manifest().to_json()
    document["checks"] = document["checks"] | {name: value}
    with pytest.raises(InputError, match=name):
        checked(Manifest, document, "llmc.json")


def test_names_and_numbers_of_strangers_break_nothing() -> None:
    document = manifest().to_json()
    tensor = document["tensors"]["model.layers.0.mlp.experts.0.down_proj"]
    document["tensors"] = {f"model.layers.{'9' * 5000}.q": tensor, "": tensor, "model.layers.x.q": tensor}
    document["pruned"] = document["pruned"] | {"calibration_tokens": {"x": [1], "9" * 30: [], "1": [0, 0]}}
    document["checks"] = document["checks"] | {"kl_max": 1.7e308, "kl_mean": 1.7e308, "kl_median": -1.0}
    document["budget"] = document["budget"] | {"curve": [{"bytes": 0, "bits": 0.0, "kl": 1.7e308}], "predicted_kl": 0.0}
    report = report_of(Manifest.model_validate(document))
    assert [each.layer for each in report.layers] == list(range(6)) and report_page(report)
