"""Artifacts side by side, and in pairs where they read the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.reports import HOSTILE, manifest

from llmc.compare import compare
from llmc.compare_tables import letters, verdict
from llmc.contracts.comparison import Comparison, Measured
from llmc.errors import InputError
from llmc.page.comparison import comparison_page


def artifact(folder: Path, scale: float = 1.0, **changes: Any) -> Path:
    """A folder whose manifest says what is to be compared; `changes` replace keys of it."""
    folder.mkdir()
    document = manifest(scale=scale).to_json() | {"files": {}, "targets": {}} | changes
    (folder / "llmc.json").write_text(json.dumps(document))
    return folder


def test_pairs_tell_what_intervals_of_single_ones_do_not(tmp_path: Path) -> None:
    """5 % more divergence in every window: far less than windows differ from each other."""
    found = compare([artifact(tmp_path / "a"), artifact(tmp_path / "b", 1.05)])
    first, second = found.artifacts
    assert first.kl_mean.high and second.kl_mean.low and first.kl_mean.high > second.kl_mean.low
    (pair,) = found.differences
    assert (
        pair.kl_mean.value == pytest.approx(0.05 * first.kl_mean.value, rel=1e-3) and verdict(pair.kl_mean) == "worse"
    )
    assert pair.kl_mean.low and pair.kl_mean.low > 0 and pair.windows == 16 and pair.same_source
    assert pair.ppl.value == pytest.approx(pair.kl_mean.value, rel=0.01)  # as the windows were made
    assert verdict(pair.top1, more_is_better=True) == "no clear difference"
    assert found.measured_on == "weights" and not found.unpaired
    assert second.bytes < first.bytes and second.verdict == "missed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"texts": {"sha256": ["0" * 64, "1" * 64]}}, "another text"),
        ({"torch_checks": {}}, "sampled"),
        ("without windows", "windows were not kept"),
    ],
)
def test_what_cannot_be_paired_is_said(tmp_path: Path, changes: Any, reason: str) -> None:
    if changes == "without windows":
        checks = manifest().to_json()["torch_checks"]
        changes = {"torch_checks": {name: value for name, value in checks.items() if name != "by_window"}}
    first, second = artifact(tmp_path / "a"), artifact(tmp_path / "b", **changes)
    found = compare([first, second])
    if changes == {"torch_checks": {}}:
        assert found.measured_on == "backend" and len(found.differences) == 1
        assert found.artifacts[0].kl_kind == reason
        return
    assert found.differences == [] and reason in found.unpaired[str(second)]
    ends = found.artifacts[1].kl_mean
    assert ends.low is not None and ends.low < ends.value  # told all the same, from the standard error


def test_wrong_ones_are_refused(tmp_path: Path) -> None:
    first = artifact(tmp_path / "a")
    with pytest.raises(InputError, match="needs two"):
        compare([first])
    with pytest.raises(InputError, match="named twice"):
        compare([first, first])
    with pytest.raises(InputError, match="was not compared with its original"):
        compare([first, artifact(tmp_path / "b", checks={}, torch_checks={})])


@pytest.mark.parametrize(
    ("ends", "said"), [((-2.0, -1.0), "better"), ((1.0, 2.0), "worse"), ((-1.0, 1.0), "no clear difference")]
)
def test_less_divergence_is_better(ends: tuple[float, float], said: str) -> None:
    assert verdict(Measured(value=sum(ends) / 2, low=ends[0], high=ends[1])) == said


def test_a_single_window_has_no_interval(tmp_path: Path) -> None:
    checks = manifest().to_json()["torch_checks"]
    checks |= {"by_window": {name: values[:1] for name, values in checks["by_window"].items()}}
    paths = [artifact(tmp_path / name, torch_checks=checks) for name in "ab"]
    found = compare(paths)
    assert found.artifacts[0].kl_mean.low is None and "one window" in found.unpaired[str(paths[1])]
    assert verdict(found.artifacts[0].kl_mean) == "no clear difference"


def test_the_command_prints_tables_json_and_a_page(llmc, tmp_path: Path) -> None:
    paths = [artifact(tmp_path / name, scale) for name, scale in (("a", 1.0), ("b", 1.5), ("c", 0.5))]
    said = llmc("compare", *paths, "--html", "c.html")
    assert said.exit_code == 0, said.output
    assert "B − A" in said.stdout and "worse" in said.stdout and "better" in said.stdout
    page = Path("c.html").read_text()
    assert "Size against divergence" in page and "<script" not in page and HOSTILE not in page
    found = Comparison.model_validate(json.loads(llmc("compare", *paths, "--json").stdout))
    assert [each.artifact for each in found.differences] == [str(each) for each in paths[1:]]
    assert comparison_page(found) == page and {*letters(found).values()} == {"A", "B", "C"}
