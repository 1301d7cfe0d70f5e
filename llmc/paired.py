"""What two models' answers to the same questions say about the difference between the models.

Both answered every question, so that only questions that they answer differently say anything: what makes a question
hard for both does not count. Statistics alone; who asked and what is none of this module's business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
Statistic = Callable[[Array], Array]  # of how often each group was drawn [R, G] → [R]
CONFIDENCE = 95  # percent, of two-sided intervals
BINS = 10  # of confidences, for the calibration error
FEWEST = 6  # changes that resampling can tell from chance: five of one kind have a sign test's p of 0.06
_Z = 1.959963984540054  # the normal distribution's quantile of 97.5 %
_RESAMPLES, _SEED = 2000, 0
_DRAWN = 1 << 22  # numbers of samples at a time
_HALVINGS = 60


class Interval(NamedTuple):
    """Two-sided, of `CONFIDENCE` percent."""

    low: float
    high: float


def sign_test(first: int, second: int) -> float:
    """Return the exact two-sided p-value of so many signs of either kind, if both kinds are equally likely.

    Twice the smaller tail of the binomial distribution with p = 1/2, at most 1. Of the two kinds of questions that one
    of two models alone answers correctly it is McNemar's test in its exact form (McNemar, Psychometrika 12, 1947);
    of reviewers' preferences, ties left out, the sign test (Dixon and Mood, JASA 41, 1946).
    """
    count, fewer = first + second, min(first, second)
    tail = sum(math.comb(count, each) for each in range(fewer + 1))
    return min(1.0, (2 * tail) / (1 << count))


def share_interval(gained: float, lost: float, count: float) -> Interval:
    """Return the interval of a difference of two shares of the same `count` questions.

    By inverting the score test of the paired difference (Tango, Statistics in Medicine 17, 1998). It is not empty where
    no answer changed, and holds with a handful of changes, where resampling misses the truth far too often.

    Args:
        gained: Questions that count for the second model alone.
        lost: Questions that count for the first model alone.
        count: All questions, at least 1.

    All three over the `design_effect` where questions come in groups (Rao and Scott, Annals of Statistics 12, 1984).
    """
    found = (gained - lost) / count

    def score(difference: float) -> float:
        linear = (2 * count - gained + lost) * difference - gained - lost
        root = math.sqrt(max(0.0, linear**2 + 8 * count * lost * difference * (1 - difference)))
        variance = count * (2 * (root - linear) / (4 * count) + difference * (1 - difference))
        distance = count * (found - difference)
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    def solve(low: float, high: float, wanted: float) -> float:
        """Where the score, which falls, is the one that is wanted."""
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > wanted else (low, middle)
        return (low + high) / 2

    return Interval(solve(-1.0, found, _Z) if found > -1 else -1.0, solve(found, 1.0, -_Z) if found < 1 else 1.0)


def design_effect(differences: Array, groups: Groups) -> float:
    """Return how many times fewer samples the groups are worth than as many independent ones, at least 1.

    The variance of the mean, from group to group as of a ratio of sums (Cochran, Sampling Techniques, 1977, section
    11.5), over that of samples that have nothing to do with each other. Where fewer than six groups changed, that tells
    nothing, and samples of a group count as one: the mean size of a group.
    """
    sums, counts = group_sums(differences, groups)
    if len(counts) == len(differences):
        return 1.0
    if len(np.unique(groups[differences != 0])) < FEWEST:
        return len(differences) / len(counts)
    rest = differences - differences.mean()
    between = np.square(sums - counts * differences.mean()).sum() * len(counts) / (len(counts) - 1)
    return float(max(1.0, between / np.square(rest).sum()))


def group_sums(values: Array, groups: Groups) -> tuple[Array, Array]:
    """Return the sum of each group's values [N] or [N, K], and the number of its samples: [G] or [G, K], and [G]."""
    sums = np.zeros((int(groups.max()) + 1, *values.shape[1:]))
    np.add.at(sums, groups, values)
    return sums, np.bincount(groups).astype(np.float64)


def bootstrap(count: int, statistic: Statistic) -> Interval:
    """Return the percentile interval of a statistic of `count` groups of samples, drawn anew with replacement 2,000
    times (Efron, Annals of Statistics 7, 1979), always in the same way.

    Both models' values of a sample stay together where the statistic is a difference, as do samples of a group.
    """
    generator, rows = np.random.default_rng(_SEED), max(1, _DRAWN // count)
    found = []
    for start in range(0, _RESAMPLES, rows):
        size = min(rows, _RESAMPLES - start)
        drawn = generator.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        found.append(statistic(np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(float)))
    low, high = np.quantile(np.concatenate(found), [0.5 - CONFIDENCE / 200, 0.5 + CONFIDENCE / 200])
    return Interval(float(low), float(high))


def mean_interval(differences: Sequence[float] | Array, groups: Groups | None = None) -> Interval:
    """Return the bootstrap's interval of the mean of what the second model has more than the first, per sample.

    Args:
        groups: The number of the group that each sample is of, from 0, [N]; None: each is alone.
    """
    values = np.asarray(differences, np.float64)
    sums, counts = group_sums(values, np.arange(len(values)) if groups is None else groups)
    return bootstrap(len(counts), lambda drawn: (drawn @ sums) / (drawn @ counts))


def calibration_error(confidences: Sequence[float], correct: Sequence[float], groups: Groups) -> Statistic:
    """Return the expected calibration error, as a statistic of how often groups were drawn.

    The mean distance between confidence and share of correct answers in ten bins of equal width, weighted by the
    answers in each (Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3).

    Args:
        confidences: Of the answers that were given, from 0 to 1, [N].
        correct: 1 for a correct answer, 0 for a wrong one, [N].
        groups: As in `mean_interval`.
    """
    sure = np.asarray(confidences, np.float64)
    gaps = np.asarray(correct, np.float64) - sure
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    sums, counts = group_sums(gaps[:, None] * (bins[:, None] == np.arange(BINS)), groups)
    return lambda drawn: np.abs(drawn @ sums).sum(axis=1) / (drawn @ counts)


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return how far two reviewers agree beyond chance: 1 always, 0 as often as chance would have it (Cohen,
    Educational and Psychological Measurement 20, 1960).

    None: they labeled nothing alike, or both gave everything one and the same label, where chance explains all.
    """
    if not first:
        return None
    count, labels, others = len(first), Counter(first), Counter(second)
    agreed = sum(one == other for one, other in zip(first, second, strict=True)) / count
    chance = sum(labels[label] * others[label] for label in labels) / count**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)
