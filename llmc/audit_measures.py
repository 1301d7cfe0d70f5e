"""From both models' values of the same samples to a difference, its interval and the flips."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from llmc import paired
from llmc.contracts.audit import Better, MeasureRecord

Pair = tuple[float, float]  # of a sample: the original's value, the artifact's


@dataclass
class Measure:
    """A measure's values, sample by sample.

    Attributes:
        pairs: Values of both models.
        confidences: Of both models' answers, where the values say which are correct and the measure is how well
            confidences tell that; empty for all other measures.
        groups: What the group is called that each sample is of; empty: each is alone.
    """

    better: Better
    pairs: list[Pair] = field(default_factory=list)
    confidences: list[Pair] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def numbered(self) -> paired.Groups:
        """The groups' numbers, in the order in which they come."""
        places = {name: place for place, name in enumerate(dict.fromkeys(self.groups))}
        return np.array([places[name] for name in self.groups] or range(len(self.pairs)), np.int64)


def measured(measure: Measure) -> MeasureRecord | None:
    """Return what there is to say about a measure; None without samples."""
    if not measure.pairs:
        return None
    if measure.confidences:
        return _calibration(measure)
    original, artifact = (np.array(each, np.float64) for each in zip(*measure.pairs, strict=True))
    differences, groups = artifact - original, measure.numbered()
    changes = _changes(differences)
    share = set(np.unique([original, artifact])) <= {0.0, 1.0}
    interval = resampled = paired.mean_interval(differences, groups)
    if share:
        worth = paired.design_effect(differences, groups)
        interval = paired.share_interval(*(each / worth for each in (*changes, len(differences))))
    changed = _changes(paired.group_sums(differences, groups)[0])
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
        gained=changes[0],
        lost=changes[1],
        p=paired.sign_test(*changed),
        **_grouped(measure, groups, changed),
    )


def _changes(differences: paired.Array) -> tuple[int, int]:
    return int((differences > 0).sum()), int((differences < 0).sum())


def _grouped(measure: Measure, groups: paired.Groups, changed: tuple[int, int]) -> dict[str, int]:
    """As `MeasureRecord` has it."""
    if not measure.groups:
        return {}
    return {"groups": int(groups.max()) + 1, "groups_gained": changed[0], "groups_lost": changed[1]}


def _calibration(measure: Measure) -> MeasureRecord:
    correct, confidences = list(zip(*measure.pairs, strict=True)), list(zip(*measure.confidences, strict=True))
    groups = measure.numbered()
    errors = [paired.calibration_error(*each, groups) for each in zip(confidences, correct, strict=True)]

    def difference(drawn: paired.Array) -> paired.Array:
        return errors[1](drawn) - errors[0](drawn)

    every = np.ones((1, int(groups.max()) + 1))
    interval = paired.bootstrap(every.shape[1], difference)
    # A sample's own part in the error is none: flips are those of its confidence's distance from the truth.
    distances = [np.abs(np.array(each) - sure) for each, sure in zip(correct, map(np.array, confidences), strict=True)]
    changes = _changes(distances[1] - distances[0])
    changed = _changes(paired.group_sums(distances[1] - distances[0], groups)[0])
    return MeasureRecord(
        samples=len(measure.pairs),
        kind="calibration error",
        better=measure.better,
        original=float(errors[0](every)[0]),
        artifact=float(errors[1](every)[0]),
        difference=float(difference(every)[0]),
        low=interval.low,
        high=interval.high,
        confidence=paired.CONFIDENCE,
        method="bootstrap",
        bootstrap=list(interval),
        gained=changes[0],
        lost=changes[1],
        **_grouped(measure, groups, changed),
    )


def verdict(found: MeasureRecord) -> str:
    """Return what the interval and, of shares, McNemar's exact test allow to say, in a word."""
    grouped = found.groups_gained, found.groups_lost
    changes = (found.gained + found.lost) if None in grouped else sum(each or 0 for each in grouped)
    few = found.method == "bootstrap" and changes < paired.FEWEST
    chance = found.kind == "share" and found.p is not None and found.p > 1 - found.confidence / 100
    if few or chance or found.low <= 0 <= found.high:
        return "unclear"
    if found.better == "neither":
        return "higher" if found.difference > 0 else "lower"
    return "better" if (found.difference > 0) == (found.better == "higher") else "worse"
