"""What two models' answers to the same questions say about the difference between the models.

Both answered every question, so that only questions that they answer differently say anything: what makes a question
hard for both does not count. Statistics alone; who asked and what is none of this module's business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[NDArray[Any]], Array]  # of samples' numbers [R, N], which may repeat → [R]
CONFIDENCE = 95  # percent, of two-sided intervals
BINS = 10  # of confidences, for the calibration error
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


def share_interval(gained: int, lost: int, count: int) -> Interval:
    """Return the interval of a difference of two shares of the same `count` questions.

    By inverting the score test of the paired difference (Tango, Statistics in Medicine 17, 1998). It is not empty where
    no answer changed, and holds with a handful of changes, where resampling misses the truth far too often.

    Args:
        gained: Questions that count for the second model alone.
        lost: Questions that count for the first model alone.
        count: All questions, at least 1.
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


def bootstrap(count: int, statistic: Statistic) -> Interval:
    """Return the percentile interval of a statistic of `count` samples, drawn anew with replacement 2,000 times (Efron,
    Annals of Statistics 7, 1979), always in the same way.

    Both models' values of a sample stay together where the statistic is a difference.
    """
    generator, rows = np.random.default_rng(_SEED), max(1, _DRAWN // count)
    sizes = [min(rows, _RESAMPLES - start) for start in range(0, _RESAMPLES, rows)]
    found = np.concatenate([statistic(generator.integers(0, count, (size, count))) for size in sizes])
    low, high = np.quantile(found, [0.5 - CONFIDENCE / 200, 0.5 + CONFIDENCE / 200])
    return Interval(float(low), float(high))


def mean_interval(differences: Sequence[float] | Array) -> Interval:
    """Return the bootstrap's interval of the mean of what the second model has more than the first, per sample."""
    values = np.asarray(differences, np.float64)
    return bootstrap(len(values), lambda drawn: values[drawn].mean(axis=1))


def calibration_errors(confidences: Sequence[float], correct: Sequence[float], drawn: NDArray[Any]) -> Array:
    """Return the expected calibration error of each row of samples' numbers [R, N], as [R].

    The mean distance between confidence and share of correct answers in ten bins of equal width, weighted by the
    answers in each (Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3).

    Args:
        confidences: Of the answers that were given, from 0 to 1, [N].
        correct: 1 for a correct answer, 0 for a wrong one, [N].
        drawn: Which samples count, and how often.
    """
    sure = np.asarray(confidences, np.float64)
    gaps = np.asarray(correct, np.float64) - sure
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    rows, columns = drawn.shape
    places = bins[drawn] + BINS * np.arange(rows)[:, None]
    sums = np.bincount(places.ravel(), gaps[drawn].ravel(), rows * BINS)
    found: Array = np.abs(sums.reshape(rows, BINS)).sum(axis=1) / columns
    return found


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
