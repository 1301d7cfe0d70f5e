"""Does a model still find what stands far back? A sentence with a number is planted in text, and asked for at the end.

After "needle in a haystack" (Kamradt 2023), but for the measure: not whether an answer is right, which few windows say
little about, but the log-likelihood of the right one, which differs smoothly and can be compared window by window.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError
from llmc.runtime.logprobs import TokenLogprob
from llmc.runtime.tokenizer import Tokenizer
from llmc.runtime.uncertainty import standard_error
from llmc.runtime.where import Stretch, by_position

Array = NDArray[Any]
# Of each window: log-probabilities of the answer's tokens, and whether each is the most likely one there.
Said = Sequence[tuple[Array, Array]]
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the text in front of the question
REPEATS = 3  # of each depth, with another name, number and text
SHORTEST = 256
_NAMES = (
    "Arden", "Belmora", "Calder", "Dunmere", "Elsworth", "Farrow", "Galden", "Harrow", "Iverness", "Jarrold", "Kelmar",
    "Lorne", "Marden", "Norwell", "Oakham",
)  # fmt: skip


class Score(Protocol):
    """`Model.score`."""

    def __call__(self, prompts: list[Any], first: int, top: int) -> list[list[TokenLogprob]]: ...


@dataclass(frozen=True)
class Needles:
    """Windows of one length.

    Attributes:
        ids: int64 [N, L]; each ends with the answer.
        depths: Of each, where the sentence stands: 0 at the beginning, 1 right in front of the question.
        answers: How many tokens the answer of each has.
    """

    ids: Array
    depths: list[float]
    answers: list[int]


@dataclass(frozen=True)
class Recall:
    """What a model makes of them. Standard errors are over windows.

    Attributes:
        length: Tokens of a window.
        logprob: Log-likelihood of the right answer, mean.
        recalled: Share of windows whose answer is the most likely one, token by token.
        by_depth: Mean of the log-likelihood by depth.
        logprob_original, recalled_original, by_depth_original: The same of the original, where it was asked.
        change_stderr: Of the difference of both log-likelihoods, window by window.
        kl_mean, kl_mean_stderr, kl_by_position: The divergence over the whole windows.
    """

    length: int
    windows: int
    logprob: float
    logprob_stderr: float
    recalled: float
    by_depth: list[float]
    logprob_original: float | None = None
    recalled_original: float | None = None
    by_depth_original: list[float] | None = None
    change_stderr: float | None = None
    kl_mean: float | None = None
    kl_mean_stderr: float | None = None
    kl_by_position: list[Stretch] | None = None


def lengths(context: int, longest: int | None) -> list[int]:
    """Of windows: the longest that there is context for, at most `longest`, and halves of it down to 256."""
    found = [min(context, longest or context)]
    while found[0] // 2 >= SHORTEST:
        found.insert(0, found[0] // 2)
    return found


def needles(tokenizer: Tokenizer, filler: Array, length: int) -> Needles:
    """Windows of so many tokens, always the same ones; InputError where that is too few.

    Args:
        filler: Tokens of any text, taken as often as needed.
    """
    rng, stream = random.Random(length), filler.reshape(-1)
    rows, depths, answers = [], list[float](), list[int]()
    for number in range(len(DEPTHS) * REPEATS):
        name, depth = _NAMES[number % len(_NAMES)], DEPTHS[number % len(DEPTHS)]
        asked, answer = _parted(tokenizer, f"The secret number of {name} is", f" {rng.randrange(10**4, 10**5)}")
        around = [_tokens(tokenizer, text) for text in ("\n", ".\n")]
        sentence, question = [*around[0], *asked, *answer, *around[1]], [*around[0], *asked, *answer]
        first = list(tokenizer.begins_with)
        room = length - len(first) - len(sentence) - len(question)
        if room < 1:
            raise InputError(
                f"windows of {length} tokens have no room for a sentence and a question of {length - room} together; "
                "give longer ones, or leave out --long"
            )
        start = rng.randrange(len(stream))
        text = np.resize(np.roll(stream, -start), room).tolist()
        place = round(depth * room)
        rows.append([*first, *text[:place], *sentence, *text[place:], *question])
        depths.append(depth)
        answers.append(len(answer))
    return Needles(np.array(rows, np.int64), depths, answers)


def ask(score: Score, found: Needles, row: int) -> tuple[Array, Array]:
    """What a model says of the answer of one window: its log-probabilities, and which are of the most likely tokens."""
    tokens = found.ids[row].tolist()
    (said,) = score([tokens], len(tokens) - found.answers[row], 1)
    return np.array([each.logprob for each in said]), np.array([each.token_id in each.top for each in said])


def recall(found: Needles, said: Said, original: Said | None = None) -> Recall:
    """Put together what a model said of all windows, and what its original did."""
    mine, right = _summed(said)
    made = Recall(
        length=found.ids.shape[1],
        windows=len(found.ids),
        logprob=float(mine.mean()),
        logprob_stderr=standard_error(mine[:, None]),
        recalled=right,
        by_depth=_by_depth(found, mine),
    )
    if original is None:
        return made
    its, its_right = _summed(original)
    before = {
        "logprob_original": float(its.mean()),
        "recalled_original": its_right,
        "by_depth_original": _by_depth(found, its),
        "change_stderr": standard_error((mine - its)[:, None]),
    }
    return Recall(**vars(made) | before)


def with_divergence(made: Recall, kl: Array) -> Recall:
    """The same, with the divergence [N, L - 1] over the windows."""
    known = {"kl_mean": float(kl.mean()), "kl_mean_stderr": standard_error(kl), "kl_by_position": by_position(kl)}
    return Recall(**vars(made) | known)


def _summed(said: Said) -> tuple[Array, float]:
    """Log-likelihood of each answer, and the share that is found."""
    return np.array([float(each.sum()) for each, _ in said]), float(np.mean([bool(each.all()) for _, each in said]))


def _by_depth(found: Needles, values: Array) -> list[float]:
    depths = np.array(found.depths)
    return [float(values[depths == depth].mean()) for depth in DEPTHS]


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _parted(tokenizer: Tokenizer, text: str, more: str) -> tuple[list[int], list[int]]:
    """Tokens of a text, and those that more of it adds; where the two do not part cleanly, each is read by itself."""
    first, both = _tokens(tokenizer, text), _tokens(tokenizer, text + more)
    return (first, both[len(first) :]) if both[: len(first)] == first else (first, _tokens(tokenizer, more))
