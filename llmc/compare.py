"""`llmc compare`: what several artifacts weigh and lose, and whether they differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llmc.contracts.comparison import CONFIDENCE, ComparedArtifact, Comparison, Difference, Measured
from llmc.contracts.manifest import Checks
from llmc.contracts.report import Report
from llmc.errors import InputError
from llmc.remake import report_of_artifact
from llmc.runtime.uncertainty import interval

_NORMAL = 1.959963984540054  # its quantile of 97.5 %: intervals of measures whose windows were not kept
_FEWEST = 2  # windows that tell how far apart windows are


def compare(paths: Sequence[Path]) -> Comparison:
    """Hold artifacts against their originals and against each other.

    By the exact divergence of the weights where all have it, otherwise by what was measured on a backend. Intervals are
    over windows of the check text; pairs are told where the text is the same, token by token.

    Raises:
        InputError: for fewer than two artifacts, or one that was not compared with its original
    """
    if len(paths) < 2:
        raise InputError("a comparison needs two artifacts, or more; name another one")
    if len({*paths}) < len(paths):
        raise InputError("an artifact was named twice; name each once")
    reports = [report_of_artifact(path) for path in paths]
    weights = all(report.exact for report in reports)
    checks = [_checks(path, report, weights) for path, report in zip(paths, reports, strict=True)]
    names = [str(path) for path in paths]
    found: list[Difference] = []
    unpaired: dict[str, str] = {}
    for name, report, mine in list(zip(names, reports, checks, strict=True))[1:]:
        if reason := _obstacle(report, reports[0], mine, checks[0]):
            unpaired[name] = reason
        else:
            same = report.source.files == reports[0].source.files
            found.append(_difference((name, names[0]), (mine, checks[0]), same))
    made = [_one(*each) for each in zip(names, reports, checks, strict=True)]
    return Comparison(
        measured_on="weights" if weights else "backend", artifacts=made, differences=found, unpaired=unpaired
    )


def _checks(path: Path, report: Report, weights: bool) -> Checks:
    found = report.exact if weights else report.measured
    if found is None:
        raise InputError(f"{path}: was not compared with its original; build it with a check text")
    return found


def _one(path: str, report: Report, checks: Checks) -> ComparedArtifact:
    windows, ratio = checks.by_window, checks.ppl / checks.ppl_original
    if windows:
        kl, top1 = _mean(windows.kl), _mean(windows.top1)
        increase = _mean(_less(windows.surprise, windows.surprise_original), math.expm1)
    else:
        kl = _around(checks.kl_mean, checks.kl_mean_stderr)
        top1 = _around(checks.top1, checks.top1_stderr)
        increase = _around(ratio - 1, checks.ppl_increase_stderr)
    return ComparedArtifact(
        artifact=path,
        name=report.name,
        source=report.source.id,
        bytes=report.sizes.artifact,
        share=report.sizes.artifact / report.sizes.original,
        kl_kind=checks.kl_kind,
        kl_mean=kl.model_copy(update={"value": checks.kl_mean}),
        ppl_increase=increase.model_copy(update={"value": ratio - 1}),
        top1=top1.model_copy(update={"value": checks.top1}),
        verdict=report.verdict,
    )


def _obstacle(report: Report, first: Report, mine: Checks, its: Checks) -> str | None:
    """Why two artifacts cannot be compared window by window; None: they can."""
    if not mine.by_window or not its.by_window:
        return "windows were not kept by the llmc that built it, or the first; build it again"
    if report.texts.sha256[1:] != first.texts.sha256[1:] or len(mine.by_window.kl) != len(its.by_window.kl):
        return "it was checked on another text than the first"
    if mine.kl_kind != its.kl_kind:
        return f"its divergence is {mine.kl_kind}, the first's {its.kl_kind}"
    if len(mine.by_window.kl) < _FEWEST:
        return "the check text has one window alone"
    return None


def _difference(names: tuple[str, str], checks: tuple[Checks, Checks], same_source: bool) -> Difference:
    one, other = (each.by_window for each in checks)
    assert one and other
    return Difference(
        artifact=names[0],
        against=names[1],
        same_source=same_source,
        windows=len(one.kl),
        kl_mean=_mean(_less(one.kl, other.kl)),
        ppl=_mean(_less(one.surprise, other.surprise), math.expm1),
        top1=_mean(_less(one.top1, other.top1)),
    )


def _less(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """The one's less the other's, window by window."""
    return [a - b for a, b in zip(one, other, strict=True)]


def _mean(windows: Sequence[float], told: Callable[[float], float] = float) -> Measured:
    """The mean over windows, as `told` makes it, with its interval."""
    value = told(float(np.mean(windows)))
    if len(windows) < _FEWEST:
        return Measured(value=value)
    low, high = interval(np.asarray(windows, np.float64)[:, None], CONFIDENCE)
    return Measured(value=value, low=told(low), high=told(high))


def _around(value: float, error: float | None) -> Measured:
    """With the normal distribution's interval, where windows were not kept."""
    if error is None:
        return Measured(value=value)
    return Measured(value=value, low=value - _NORMAL * error, high=value + _NORMAL * error)
