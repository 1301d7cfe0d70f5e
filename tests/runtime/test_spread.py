"""Histograms and windows' means of a divergence."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtime.spread import EDGES, by_window, histogram


def test_every_token_is_in_one_bin() -> None:
    kl = np.array([[0.0, 1e-9, 1.1e-6, 0.05], [0.5, 1.0, 9.9, 12.0]])
    found = histogram(kl)
    assert len(found.counts) == len(found.edges) + 1 and sum(found.counts) == kl.size
    assert found.counts[0] == 2 and found.counts[-1] == 1
    assert found.counts[found.edges.index(1.0) + 1] == 1  # a bin holds its lower edge
    assert EDGES[0] == 1e-6 and EDGES[-1] == 10 and found.edges == sorted(found.edges)


def test_windows_have_the_means_that_the_whole_has() -> None:
    draw = np.random.default_rng(0)
    kl, before, after = draw.exponential(size=(5, 7)), -draw.exponential(size=(5, 7)), -draw.exponential(size=(5, 7))
    agreed = (draw.random((5, 7)) > 0.5).astype(float)
    found = by_window(kl, before, after, agreed)
    assert np.mean(found.kl) == pytest.approx(kl.mean(), rel=1e-6)
    assert np.mean(found.surprise) - np.mean(found.surprise_original) == pytest.approx(
        (before - after).mean(), rel=1e-5
    )
    assert found.top1[2] == pytest.approx(agreed[2].mean(), rel=1e-6)
