"""Where an artifact is furthest from its original: by place in a window, by kind of token, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmc.runtime.uncertainty import standard_error

Array = NDArray[Any]
_WORST = 10
_LARGEST_SURPRISE = 700.0  # nats per token whose perplexity still is a number
_CONTEXT = 8  # tokens that are shown in front of one
_BEGINNING = 24  # tokens that are shown of a window
_SPACES = "Ġ▁ \u00a0"  # how vocabularies write the space in front of a word


@dataclass(frozen=True)
class Stretch:
    """The mean divergence at the positions first to last of all windows; 1 is that behind the first token."""

    first: int
    last: int
    kl_mean: float
    kl_mean_stderr: float


@dataclass(frozen=True)
class KindOfToken:
    """The mean divergence where a token of this kind follows, and how many do."""

    kind: str
    tokens: int
    kl_mean: float


@dataclass(frozen=True)
class SourceOfText:
    """The mean divergence over the windows of one source of the text, and both perplexities there."""

    text: str
    windows: int
    kl_mean: float
    kl_mean_stderr: float
    ppl_original: float
    ppl: float
    ppl_increase_stderr: float


@dataclass(frozen=True)
class WorstToken:
    """One of the tokens that suffered most: window from 0, position as in `Stretch`; p is of what follows."""

    window: int
    position: int
    kl: float
    p_original: float
    p: float


@dataclass(frozen=True)
class WorstWindow:
    """One of the windows that suffered most, from 0, and its mean divergence."""

    window: int
    kl_mean: float


def by_position(kl: Array) -> list[Stretch]:
    """Of [N, P] values, over stretches that double: 1, 2 to 3, 4 to 7, and so on."""
    found, first, positions = [], 1, kl.shape[1]
    while first <= positions:
        last = min(2 * first - 1, positions)
        part = kl[:, first - 1 : last]
        error = standard_error(part) if part.size > 1 else 0.0
        found.append(Stretch(first, last, float(part.mean()), error))
        first = last + 1
    return found


def by_source(kl: Array, before: Array, after: Array, sources: Sequence[tuple[str, int]]) -> list[SourceOfText]:
    """Of [N, P] values and log-probabilities of the tokens that follow, where the windows are those of several sources,
    so many of each, one source after the other; nothing where these are not all the windows.
    """
    if len(sources) < 2 or sum(count for _, count in sources) != len(kl) or not all(count for _, count in sources):
        return []
    found, start = [], 0
    for text, count in sources:
        part, mine, its = (each[start : start + count] for each in (kl, before, after))
        ppl_original, ppl = (math.exp(min(-each.mean(), _LARGEST_SURPRISE)) for each in (mine, its))
        error = ppl / ppl_original * standard_error(mine - its)
        found.append(SourceOfText(text, count, float(part.mean()), standard_error(part), ppl_original, ppl, error))
        start += count
    return found


def by_kind(kl: Array, following: Array, text_of: Callable[[int], str | None]) -> list[KindOfToken]:
    """Of [N, P] values and the tokens that follow [N, P]; the kinds that lose most come first."""
    ids, places = np.unique(following, return_inverse=True)
    names, kinds = np.unique([kind(text_of(int(token))) for token in ids], return_inverse=True)
    number = kinds[places.reshape(-1)]
    counts, sums = np.bincount(number, minlength=len(names)), np.bincount(number, kl.reshape(-1), len(names))
    found = [
        KindOfToken(str(name), int(count), float(total / count))
        for name, count, total in zip(names, counts, sums, strict=True)
    ]
    return sorted(found, key=lambda each: -each.kl_mean)


def kind(token: str | None) -> str:
    """What a token, as its vocabulary writes it, is: a word's start or a part of one, digits, and so on."""
    if token is None:
        return "other"
    bare = token.lstrip(_SPACES)
    if not bare or all(each in "ĊĉčĠ▁\n\r\t " for each in bare):
        return "space"
    if len(bare) > 2 and bare.startswith("<") and bare.endswith(">"):  # a special token, or a byte
        return "other"
    if any(each.isdigit() for each in bare):
        return "digits"
    if bare[0].isalpha():
        return "word start" if bare != token else "word part"
    return "punctuation"


def worst(kl: Array, before: Array, after: Array) -> list[WorstToken]:
    """The places of the largest of [N, P] values; before, after: log-probabilities of the tokens that follow [N, P]."""
    most = np.argsort(-kl, axis=None, kind="stable")[:_WORST]
    return [
        WorstToken(
            int(row), int(place) + 1, float(kl[row, place]), *(float(np.exp(x[row, place])) for x in (before, after))
        )
        for row, place in zip(*np.unravel_index(most, kl.shape), strict=True)
    ]


def worst_windows(kl: Array) -> list[WorstWindow]:
    """Of [N, P] values; nothing where there is only one window."""
    means = kl.mean(axis=1)
    most = np.argsort(-means, kind="stable")[: _WORST if len(means) > 1 else 0]
    return [WorstWindow(int(window), float(means[window])) for window in most]


def in_text(place: WorstToken, ids: Array, decode: Callable[[Sequence[int]], str]) -> tuple[str, str]:
    """What stands in front of a token of windows [N, P + 1], and the token."""
    row = ids[place.window]
    start = max(0, place.position - _CONTEXT)
    return decode(row[start : place.position].tolist()), decode([int(row[place.position])])


def beginning(place: WorstWindow, ids: Array, decode: Callable[[Sequence[int]], str]) -> str:
    """The first tokens of a window of [N, P + 1]."""
    return decode(ids[place.window][:_BEGINNING].tolist())
