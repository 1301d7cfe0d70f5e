"""report.html: one page with every section, that fetches nothing and does nothing that strangers' strings say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.reports import HOSTILE, audit_record, manifest, rich_report

from llmc.audit_models import artifact_place
from llmc.contracts.part import Nothing
from llmc.page import report_page
from llmc.page.charts import Axis
from llmc.report import report_of


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def elements(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed(page)
    assert not parser.open
    return parser.found


def test_it_has_every_section_and_its_numbers() -> None:
    report = rich_report()
    page, checks = report_page(report), report.checks
    assert checks
    change = f"{100 * (checks.ppl / checks.ppl_original - 1):+.2f} %"
    ids = {attributes.get("id") for _, attributes in elements(page)}
    assert {"summary", "divergence", "where", "worst", "size", "budget", "layers", "experts", "roles", "speed", "audit",
            "texts",
            "provenance"} <= ids  # fmt: skip
    for told in (
        f"{checks.kl_mean:.4f}",
        change,
        "89.00 %",
        "80.0%",
        "it misses the limit of top-1 agreement",
        "c0ffee",
    ):
        assert told in page, told


def test_a_comparison_made_anew_is_told() -> None:
    page = report_page(rich_report())
    assert "Computed anew by llmc check --against, over 16 windows: mean KL" in page and "Errors of experts" in page
    assert page.count(">0.1000<") == 2 * len(rich_report().experts), "the worst expert and the mean of every layer"


def test_an_audit_is_told_by_differences() -> None:
    page = report_page(rich_report())
    for told in ("-3.0 (-5.0 … -1.0)", "4 / 16", "acc (worse)", "unclear", "kappa 0.50", "sign test p = 0.420"):
        assert told in page, told
    assert "length (unclear)" not in page  # no share: it stands in the table alone


@pytest.mark.parametrize("full", [(0,), (7,), (-1,), (0, -1)], ids=str)
def test_divergences_may_all_be_alike(full: tuple[int, ...]) -> None:
    """As of a model that says the same of everything: then all are 0, and there is no power of ten to label."""
    report = rich_report(layers=1, experts=3)
    assert report.checks is not None and report.checks.kl_histogram is not None
    counts = [0] * len(report.checks.kl_histogram.counts)
    for place in full:
        counts[place] = 99
    value = 0.0 if full == (0,) else 20.0
    checks = report.checks.model_copy(
        update={
            "kl_histogram": report.checks.kl_histogram.model_copy(update={"counts": counts}),
            **dict.fromkeys(("kl_mean", "kl_median", "kl_p99", "kl_p999", "kl_max"), value),
        }
    )
    page = report_page(report.model_copy(update={"checks": checks}))
    assert "How the divergence is spread" in page and not re.search(r"\bnan\b", page)


def test_what_strangers_wrote_is_text() -> None:
    page = report_page(rich_report())
    tags = {tag for tag, _ in elements(page)}
    assert not tags & {"script", "img", "iframe", "object", "link", "form"}
    assert "&lt;script&gt;alert(1)" in page and HOSTILE not in page
    assert "\u202e" not in page and "\\u202e" in page  # nothing turns the line around
    assert not [name for _, attributes in elements(page) for name in attributes if name.startswith("on")]


def test_it_fetches_nothing() -> None:
    page = report_page(rich_report())
    for _, attributes in elements(page):
        assert "src" not in attributes and attributes.get("href", "#").startswith("#")
    assert "http" not in page.replace("http-equiv", "") and "url(" not in page and "@import" not in page


def test_it_can_be_read_without_eyes() -> None:
    found = elements(report_page(rich_report()))
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len({*ids})
    for tag, attributes in found:
        if tag == "svg" and "aria-hidden" not in attributes and "role" in attributes:
            assert all(name in ids for name in (attributes["aria-labelledby"] or "").split())
    count = {tag: sum(each == tag for each, _ in found) for tag in ("table", "caption", "figure", "main", "nav", "h1")}
    assert count["table"] == count["caption"] > count["figure"] > 9  # a table for every figure, and some more
    assert count["main"] == count["nav"] == count["h1"] == 1


def test_equal_reports_are_equal_pages_and_small() -> None:
    large = rich_report(layers=61, experts=256)
    assert report_page(large) == report_page(large)
    assert len(report_page(large)) < 1_500_000


def test_a_report_with_little_in_it_is_a_page() -> None:
    full = manifest(missed=False)
    bare = full.model_copy(update={"checks": Nothing(), "torch_checks": Nothing(), "layers": [], "budget": None})
    page = report_page(report_of(bare.model_copy(update={"pruned": Nothing(), "tensors": {}, "tokenizer": None})))
    assert "It was not compared with the original." in page and 'id="worst"' not in page and elements(page)
    assert "It keeps all 2 limits." in report_page(report_of(full))


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-9, 5.0], [3.0], [7e-4, 2e-3]])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_has_room_for_its_values(values: list[float], log: bool) -> None:
    axis = Axis.around(values, log)
    assert all(0 <= axis.share(value) <= 1 for value in values) and axis.low < axis.high
    ticks = [value for value, _ in axis.ticks()]
    assert 2 <= len(ticks) <= 9 and all(axis.low <= value <= axis.high * 1.001 for value in ticks)


def test_an_artifact_without_a_report_gets_the_one_that_its_build_left(llmc, recipe) -> None:
    assert llmc("build", recipe(targets=[]), "-o", "out").exit_code == 0
    out, names = Path("out"), ("report.json", "report.html")
    before = {name: (out / name).read_bytes() for name in (*names, "llmc.json")}
    document = json.loads(before["llmc.json"])
    assert {*names} <= document["files"].keys()
    for name in names:
        (out / name).unlink()
        del document["files"][name]
    del document["digest"]
    (out / "llmc.json").write_text(json.dumps(document))
    made = llmc("report", out)
    assert made.exit_code == 0 and made.stdout.strip() == "out/report.html", made.output
    assert {name: (out / name).read_bytes() for name in names} == {name: before[name] for name in names}
    assert llmc("inspect", out, "--verify").exit_code == 0


def test_what_was_computed_anew_is_added(llmc, recipe, small_model: Path) -> None:
    assert llmc("build", recipe(targets=[]), "-o", "out").exit_code == 0
    found = llmc("check", "out", "--against", small_model, "--json")
    Path("against.json").write_text(found.stdout)
    made = llmc("report", "out", "--against", "against.json", "-o", "apart", "--json")
    assert made.exit_code == 0, made.output
    report, record = json.loads(made.stdout), json.loads(found.stdout)
    errors = [each["routing"]["expert_errors"] for each in record["layers"] if each.get("routing")]
    assert report["against"] == record and errors
    assert [each["errors"] for each in report["experts"] if "errors" in each] == errors
    page = Path("apart/report.html").read_text()
    assert "Errors of experts" in page and "Errors of experts" not in Path("out/report.html").read_text()
    Path("against.json").write_text(json.dumps(record | {"digest": "0" * 64}))
    said = llmc("report", "out", "--against", "against.json", "-o", "apart")
    assert said.exit_code == 2 and "or about an earlier out; run `llmc check out --against" in said.stderr


def test_speed_and_audit_are_added(llmc, recipe, tmp_path: Path) -> None:
    assert llmc("build", recipe(targets=[]), "-o", "out").exit_code == 0
    speed = rich_report().speed
    assert speed
    (tmp_path / "bench.json").write_text(json.dumps(speed.to_json()))
    made = llmc("report", "out", "--bench", tmp_path / "bench.json", "-o", "apart")
    assert made.exit_code == 0 and 'id="speed"' in Path("apart/report.html").read_text()
    assert 'id="speed"' not in Path("out/report.html").read_text()
    (tmp_path / "audit.json").write_text(json.dumps(audit_record(artifact_place(Path("out")).digest).to_json()))
    assert llmc("report", "out", "--audit", tmp_path, "-o", "apart").exit_code == 0
    assert 'id="audit"' in Path("apart/report.html").read_text()
    assert llmc("report", "out").exit_code == 0  # what is written anew changes no answer
    assert llmc("report", "out", "--audit", tmp_path, "-o", "apart").exit_code == 0
    (tmp_path / "audit.json").write_text(json.dumps(audit_record().to_json()))
    said = llmc("report", "out", "--audit", tmp_path, "-o", "apart")
    assert said.exit_code == 2 and "run `llmc eval out`" in said.stderr
    (tmp_path / "bench.json").write_text("{}")
    assert llmc("report", "out", "--bench", tmp_path / "bench.json", "-o", "apart").exit_code == 2
