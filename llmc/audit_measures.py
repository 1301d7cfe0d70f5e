"""From both models' values of the same samples to a difference, its interval and the flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmc import paired
from llmc.contracts.audit import Better, MeasureRecord

FEWEST = 6  # changes that resampling can tell from chance: five of one kind have a sign test's p of 0.06
Pair = tuple[float, float]  # of a sample: the original's value, the artifact's


@dataclass
class Measure:
    """A measure's values, sample by sample.

    Attributes:
        pairs: Values of both models.
        confidences: Of both models' answers, where the values say which are correct and the measure is how well
            confidences tell that; empty for all other measures.
    """

    better: Better
    pairs: list[Pair] = field(default_factory=list)
    confidences: list[Pair] = field(default_factory=list)


def measured(measure: Measure) -> MeasureRecord | None:
    """Return what there is to say about a measure; None without samples."""
    if not measure.pairs:
        return None
    if measure.confidences:
        return _calibration(measure)
    original, artifact = (np.array(each, np.float64) for each in zip(*measure.pairs, strict=True))
    differences = artifact - original
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    share = set(np.unique([original, artifact])) <= {0.0, 1.0}
    resampled = paired.mean_interval(differences)
    interval = paired.share_interval(gained, lost, len(differences)) if share else resampled
    return MeasureRecord(
        samples=len(differences),
        kind="share" if share else "mean",
        better=measure.better,
        original=float(original.mean()),
        artifact=float(artifact.mean()),
        difference=float(differences.mean()),
        low=interval.low,
        high=interval.high,
        confidence=paired.CONFIDENCE,
        method="score" if share else "bootstrap",
        bootstrap=list(resampled),
        gained=gained,
        lost=lost,
        p=paired.sign_test(gained, lost),
    )


def _calibration(measure: Measure) -> MeasureRecord:
    correct, confidences = list(zip(*measure.pairs, strict=True)), list(zip(*measure.confidences, strict=True))
    count = len(measure.pairs)

    def difference(drawn: Any) -> Any:
        return _error(confidences[1], correct[1], drawn) - _error(confidences[0], correct[0], drawn)

    every = np.arange(count)[None]
    interval = paired.bootstrap(count, difference)
    # A sample's own part in the error is none: flips are those of its confidence's distance from the truth.
    distances = [np.abs(np.array(each) - sure) for each, sure in zip(correct, map(np.array, confidences), strict=True)]
    return MeasureRecord(
        samples=count,
        kind="calibration error",
        better=measure.better,
        original=float(_error(confidences[0], correct[0], every)[0]),
        artifact=float(_error(confidences[1], correct[1], every)[0]),
        difference=float(difference(every)[0]),
        low=interval.low,
        high=interval.high,
        confidence=paired.CONFIDENCE,
        method="bootstrap",
        bootstrap=list(interval),
        gained=int((distances[1] > distances[0]).sum()),
        lost=int((distances[1] < distances[0]).sum()),
    )


def _error(confidences: Sequence[float], correct: Sequence[float], drawn: Any) -> Any:
    return paired.calibration_errors(confidences, correct, drawn)


def verdict(found: MeasureRecord) -> str:
    """Return what the interval and, of shares, McNemar's exact test allow to say, in a word."""
    few = found.method == "bootstrap" and found.gained + found.lost < FEWEST
    chance = found.kind == "share" and found.p is not None and found.p > 1 - found.confidence / 100
    if few or chance or found.low <= 0 <= found.high:
        return "unclear"
    if found.better == "neither":
        return "higher" if found.difference > 0 else "lower"
    return "better" if (found.difference > 0) == (found.better == "higher") else "worse"
