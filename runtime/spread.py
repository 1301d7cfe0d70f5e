"""How the divergence is spread: over all tokens, as a histogram; over windows, for comparing two artifacts by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_PER_DECADE = 4
_STEPS = range(-6 * _PER_DECADE, _PER_DECADE + 1)  # from a millionth of a nat to ten nats
EDGES = tuple(float(f"{10 ** (step / _PER_DECADE):.6g}") for step in _STEPS)


@dataclass(frozen=True)
class Histogram:
    """How many values lie between edges; the first count is of those below the first edge, the last of those above."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Windows:
    """Means of every window: of the divergence, of both models' surprise at the true token, in nats, and of top-1."""

    kl: list[float]
    surprise_original: list[float]
    surprise: list[float]
    top1: list[float]


def histogram(kl: Array) -> Histogram:
    """Count divergences by bins that are equally wide on a scale of logarithms, and the same for every artifact."""
    counts = np.bincount(np.searchsorted(EDGES, kl.ravel(), side="right"), minlength=len(EDGES) + 1)
    return Histogram(list(EDGES), counts.tolist())


def by_window(kl: Array, before: Array, after: Array, agreed: Array) -> Windows:
    """Means over the positions of [N, P] values, as digits that mean something; before, after: log-probabilities."""
    return Windows(*(_means(each) for each in (kl, -before, -after, agreed)))


def _means(values: Array) -> list[float]:
    return [float(f"{each:.7g}") for each in values.mean(axis=1)]
