"""Where an artifact is furthest from its original."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtime.uncertainty import standard_error
from llmc.runtime.where import (
    Stretch,
    beginning,
    by_kind,
    by_position,
    by_source,
    in_text,
    kind,
    worst,
    worst_windows,
)


def test_stretches_double_and_cover_every_position_once() -> None:
    kl = np.random.default_rng(0).exponential(size=(3, 21))
    found = by_position(kl)
    assert [(each.first, each.last) for each in found] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 21)]
    part = kl[:, 3:7]
    assert found[2] == Stretch(4, 7, pytest.approx(part.mean()), pytest.approx(standard_error(part)))
    whole = sum(each.kl_mean * (each.last - each.first + 1) for each in found) / 21
    assert whole == pytest.approx(kl.mean())
    assert by_position(np.ones((1, 1))) == [Stretch(1, 1, 1.0, 0.0)]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("Ġthe", "word start"), ("▁Der", "word start"), ("ing", "word part"), ("Ġ12", "digits"), ("x2", "digits"),
        ("Ġ(", "punctuation"), ("</", "punctuation"), ("ĊĊ", "space"), ("▁▁", "space"), ("Ġ", "space"),
        ("<|end|>", "other"), (None, "other"), ("<0x0A>", "other"), ("", "space"),
    ],
)  # fmt: skip
def test_kinds_of_tokens(token: str | None, expected: str) -> None:
    assert kind(token) == expected


def test_kinds_by_what_they_lose() -> None:
    vocabulary = ["Ġa", "b", "Ġc"]
    following = np.array([[0, 1, 2], [1, 1, 0]])
    kl = np.array([[1.0, 5.0, 2.0], [6.0, 7.0, 3.0]])
    found = by_kind(kl, following, vocabulary.__getitem__)
    assert [(each.kind, each.tokens, each.kl_mean) for each in found] == [("word part", 3, 6.0), ("word start", 3, 2.0)]


def test_the_worst_tokens_and_their_text() -> None:
    kl = np.zeros((2, 12))
    kl[1, 9], kl[0, 2] = 4.0, 2.0
    before, after = np.full((2, 12), np.log(0.5)), np.full((2, 12), np.log(0.25))
    found = worst(kl, before, after)
    assert len(found) == 10
    assert [(each.window, each.position, each.kl) for each in found[:2]] == [(1, 10, 4.0), (0, 3, 2.0)]
    assert (found[0].p_original, found[0].p) == (pytest.approx(0.5), pytest.approx(0.25))
    ids = np.arange(26).reshape(2, 13)
    assert in_text(found[0], ids, lambda tokens: ",".join(map(str, tokens))) == ("15,16,17,18,19,20,21,22", "23")
    assert in_text(found[1], ids, lambda tokens: ",".join(map(str, tokens))) == ("0,1,2", "3")


def test_sources_have_their_own_windows() -> None:
    generator = np.random.default_rng(0)
    kl, before, after = (generator.exponential(size=(5, 9)) for _ in range(3))
    found = by_source(kl, -before, -after, [("a", 2), ("b", 3)])
    assert [(each.text, each.windows) for each in found] == [("a", 2), ("b", 3)]
    assert (found[1].kl_mean, found[1].kl_mean_stderr) == (kl[2:].mean(), standard_error(kl[2:]))
    assert found[0].ppl == pytest.approx(np.exp(after[:2].mean()))
    error = np.exp(after[:2].mean() - before[:2].mean()) * standard_error(before[:2] - after[:2])
    assert found[0].ppl_increase_stderr == pytest.approx(error)
    assert by_source(kl, before, after, [("a", 5)]) == by_source(kl, before, after, [("a", 2), ("b", 2)]) == []


def test_the_worst_windows_and_how_they_begin() -> None:
    kl = np.zeros((12, 9))
    kl[7], kl[3, 0] = 2.0, 9.0
    found = worst_windows(kl)
    assert len(found) == 10 and [(each.window, each.kl_mean) for each in found[:3]] == [(7, 2.0), (3, 1.0), (0, 0.0)]
    ids = np.arange(12 * 10).reshape(12, 10)
    assert beginning(found[0], ids, lambda tokens: ",".join(map(str, tokens))) == "70,71,72,73,74,75,76,77,78,79"
    assert worst_windows(kl[:1]) == []
