"""Intervals hold what they say about as often as they say, and follow the text's windows."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtime.uncertainty import ends, standard_error


def test_an_end_of_95_percent_is_beyond_the_mean_about_as_often() -> None:
    """Of skewed values in windows that differ; 1.645 standard errors hold it more seldom."""
    rng = np.random.default_rng(0)
    texts = np.exp(0.5 * rng.standard_normal((200, 12, 1)) + rng.standard_normal((200, 12, 30)))
    mean = np.exp((0.25 + 1) / 2)
    beyond = np.mean([ends(text, upper=True)["95"] >= mean for text in texts])
    plain = np.mean([text.mean() + 1.645 * standard_error(text) >= mean for text in texts])
    assert plain + 0.02 < beyond and 0.9 < beyond < 0.99
    assert np.mean([ends(text, upper=False)["95"] <= mean for text in texts]) > 0.9


@pytest.mark.parametrize(("windows", "positions"), [(1, 100), (3, 50), (16, 50), (3000, 2)])
def test_ends_are_ordered_and_the_same_every_time(windows: int, positions: int) -> None:
    values = np.random.default_rng(0).exponential(size=(windows, positions))
    upper, lower = ends(values, upper=True), ends(values, upper=False)
    found = [lower["99"], lower["95"], lower["90"], values.mean(), upper["90"], upper["95"], upper["99"]]
    assert found == sorted(found) and ends(values, upper=True) == upper
    normal = (upper["95"] - values.mean()) / (values.std() / np.sqrt(values.size))
    assert 1.2 < normal < 3


def test_what_is_always_the_same_is_certain() -> None:
    assert ends(np.ones((9, 5)), upper=False) == {"90": 1, "95": 1, "99": 1}
    assert ends(np.ones((1, 1)), upper=True)["95"] == 1


def test_one_window_that_differs_does_not_make_ends_infinite() -> None:
    values = np.ones((10, 50))
    values[0, :5] = 0
    assert 0.9 < ends(values, upper=False)["99"] <= ends(values, upper=False)["90"] < values.mean() == 0.99
