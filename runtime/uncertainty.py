"""How far a mean over the tokens of a text may be from that over all text like it.

It is told by how windows of the text differ, as the tokens of one depend on each other. A difference of two models is
taken token by token before, so that what makes a window hard for both does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmc.contracts.confidence import CONFIDENCES

Array = NDArray[Any]
_RESAMPLES, _SEED = 2000, 0
_FEWEST, _MOST = 8, 1024  # parts of a text that are drawn anew
_LEAST_SPREAD = 0.25  # of a resample, in that of the sample: a resample of equal windows is not certain of its mean


def standard_error(values: Array) -> float:
    """Of the mean of [N, P] values, from the spread between windows; a single one leaves that between its tokens. What
    resampling the windows tends to is the same, but for a factor of √(1 - 1/N).
    """
    spread = values.mean(axis=1) if len(values) > 1 else values[0]
    return float(spread.std(ddof=1) / math.sqrt(len(spread)))


def ends(values: Array, upper: bool) -> dict[str, float]:
    """Ends of the one-sided intervals of a mean of [N, P] values, upper or lower ones, by confidence in percent.

    By the studentized bootstrap (Efron 1979), which few windows and skewed values mislead less than others: windows are
    drawn with replacement, and the error of each resample's mean is taken in units of its own standard error. Fewer
    windows than eight are cut in pieces. Always the same draws, so that equal answers have equal ends.
    """
    levels = [1 - each / 100 if upper else each / 100 for each in CONFIDENCES]
    found = _quantiles(values, levels)
    return {str(level): end for level, end in zip(CONFIDENCES, found, strict=True)}


def interval(values: Array, confidence: int) -> tuple[float, float]:
    """Return both ends of the two-sided interval of a mean of [N, P] values, of so many percent; as `ends` has them."""
    beyond = (1 - confidence / 100) / 2
    low, high = _quantiles(values, [1 - beyond, beyond])
    return low, high


def _quantiles(values: Array, levels: Sequence[float]) -> list[float]:
    """Ends of intervals, by the quantiles of the resamples' errors that they are taken from."""
    parts = _parts(values)
    mean, count = float(values.mean()), len(parts)
    error = parts.std(ddof=1) / math.sqrt(count) if count > 1 else 0.0
    if error == 0:
        return [mean] * len(levels)
    shares = np.random.default_rng(_SEED).multinomial(count, [1 / count] * count, size=_RESAMPLES) / count
    centered = parts - parts.mean()
    means = shares @ centered
    spreads = np.sqrt(np.maximum(shares @ np.square(centered) - np.square(means), 0) / (count - 1))
    errors = means / np.maximum(spreads, _LEAST_SPREAD * error)
    return [float(each) for each in mean - np.quantile(errors, levels) * error]


def _parts(values: Array) -> Array:
    """Means of the windows, or of pieces of them, or of neighboring ones together."""
    windows, positions = values.shape
    if windows < _FEWEST:
        pieces = min(positions, -(-_FEWEST // windows))
        return np.concatenate([each.mean(axis=1) for each in np.array_split(values, pieces, axis=1)])
    means = values.mean(axis=1)
    return means if windows <= _MOST else np.array([each.mean() for each in np.array_split(means, _MOST)])
