"""The review sheet is blind and harmless, works in a browser by keyboard, and labels come back from it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llmc.contracts.audit import AuditedModel, AuditRecord
from llmc.review_sheet import write_sheet

Llmc = Callable[..., Result]


def sample(number: int, original: str, artifact: str) -> dict[str, Any]:
    sides = {"original": {"answer": original, "values": {}}, "artifact": {"answer": artifact, "values": {}}}
    return {"task": "t", "sample": number, "prompt": f"question {number}", "target": "", **sides}


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """Twenty answers that differ, one that does not, and one question that is there twice."""
    folder = tmp_path / "small.audit"
    folder.mkdir()
    samples = [sample(number, f"old{number}", f"new{number}") for number in range(20)]
    samples += [sample(20, "same", "same"), samples[3] | {"task": "another"}]
    assert write_sheet(folder, samples) == 20
    model = AuditedModel(name="m", digest="d", runs_on="r")
    told: dict[str, Any] = {
        "format_version": 1,
        "llmc_version": "0",
        "harness": "0",
        "same_source": True,
        "chat": False,
    }
    record = AuditRecord(artifact=model, original=model, tasks={}, **told)
    (folder / "audit.json").write_text(json.dumps(record.to_json()))
    return folder


def items(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "review.jsonl").read_text().splitlines()]


def write_labels(folder: Path, reviewer: str, label: Callable[[int, dict[str, str]], str | None]) -> Path:
    lines = [
        {"sheet": item["sheet"], "reviewer": reviewer, "item": item["item"], "label": said}
        for number, item in enumerate(items(folder))
        if (said := label(number, item)) is not None
    ]
    path = folder / f"{reviewer}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def side_of(item: dict[str, str], begin: str) -> str:
    return "left" if item["left"].startswith(begin) else "right"


def test_sides_are_shuffled_and_nothing_tells_whose_they_are(audit: Path) -> None:
    page = (audit / "review.html").read_text("utf-8")
    sides = [side_of(item, "new") for item in items(audit)]
    assert 5 <= sides.count("left") <= 15
    assert not re.search("original|artifact", page + (audit / "review.jsonl").read_text())
    key = json.loads((audit / "review-key.json").read_text())["sides"]
    assert all(key[item["item"]][side] == "artifact" for item, side in zip(items(audit), sides, strict=True))
    assert not re.search(r"""(?:src|href)=|url\(|@import|https?:""", page.replace("link.href =", ""))


def test_the_same_seed_makes_the_same_sheet_and_few_questions_are_drawn(tmp_path: Path) -> None:
    samples = [sample(number, "a", "b") for number in range(30)]
    sheets = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        (tmp_path / name).mkdir()
        assert write_sheet(tmp_path / name, samples, seed, 10) == 10
        sheets.append((tmp_path / name / "review.html").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert write_sheet(tmp_path / "one", samples[:0]) == 0 and not list((tmp_path / "one").iterdir())


def test_what_models_say_is_no_markup(tmp_path: Path) -> None:
    write_sheet(tmp_path, [sample(0, "</script><script>alert(1)</script>", "<b>&amp; LLMC_ITEMS")])
    page = (tmp_path / "review.html").read_text("utf-8")
    assert page.count("<script") == 2 and "<b>" not in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert {data["items"][0][side] for side in ("left", "right")} == {
        "</script><script>alert(1)</script>",
        "<b>&amp; LLMC_ITEMS",
    }


def test_labels_come_back_with_agreement_and_a_sign_test(audit: Path, llmc: Llmc) -> None:
    """Ten questions; one reviewer always prefers the original, the other one twice says that both are bad."""
    one = write_labels(audit, "one", lambda number, item: side_of(item, "old") if number < 10 else None)
    other = write_labels(
        audit, "other", lambda number, item: None if number >= 10 else "neither" if number < 2 else side_of(item, "old")
    )
    result = llmc("review", audit, one, other, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["review"]
    assert json.loads((audit / "audit.json").read_text())["review"] == found
    assert found["labels"] == {"original": 18, "artifact": 0, "both": 0, "neither": 2}
    assert found["reviewers"] == ["one", "other"] and found["items"] == 10
    assert found["decided"] == {"original": 10, "artifact": 0} and found["p"] == pytest.approx(2 / 1024)
    assert found["kappa"] == pytest.approx(0)  # eight of ten alike, as often as chance has it
    shown = llmc("review", audit, one)
    assert "original 10, artifact 0; sign test p 0.002" in shown.stdout and "no question has two labels" in shown.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sheet": "other"}, "label 1: is of another sheet"),
        ({"item": "nobody"}, "label 1: item 'nobody'"),
        ({"label": "original"}, "label 'original'; labels are left, right, both, neither"),
    ],
)
def test_labels_of_something_else_are_refused(audit: Path, llmc: Llmc, change: dict[str, str], message: str) -> None:
    path = write_labels(audit, "one", lambda number, item: "left" if number == 0 else None)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    result = llmc("review", audit, path)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    result = llmc("review", path.parent.parent, path)
    assert result.exit_code == 2 and "give the folder that `llmc eval` wrote" in result.stderr


PRESS = """<script>
for (const key of ["1", "2", "ArrowRight", "3", "ArrowLeft", "4", "x"])
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
part("reviewer").value = "R"; part("reviewer").dispatchEvent(new Event("input"));
const out = document.createElement("pre"); out.id = "out"; out.textContent = lines(); document.body.append(out);
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_a_browser_labels_by_keyboard(audit: Path, tmp_path: Path, llmc: Llmc) -> None:
    (tmp_path / "pressed.html").write_text(
        (audit / "review.html").read_text("utf-8").replace("</body>", f"{PRESS}</body>"), encoding="utf-8"
    )
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", f"file://{tmp_path / 'pressed.html'}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    lines = html.unescape(shown.partition('<pre id="out">')[2].partition("</pre>")[0])
    labels = {line["item"]: line["label"] for line in map(json.loads, lines.splitlines())}
    names = [item["item"] for item in items(audit)]
    # The fourth was given equal marks, the way back led to it, and it was given others.
    assert labels == {names[0]: "left", names[1]: "right", names[3]: "neither"}
    assert f"Question 5 of {len(names)} (t); 3 labeled" in shown
    (tmp_path / "labels.jsonl").write_text(lines)
    result = llmc("review", audit, tmp_path / "labels.jsonl", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["review"]["reviewers"] == ["R"]
