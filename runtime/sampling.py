"""From logits to a token: greedy, or drawn from a tempered and truncated distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from llmc.errors import InputError
from llmc.registry import unknown
from llmc.runtime import arguments
from llmc.runtime.backends import FloatArray

Probabilities = npt.NDArray[np.float64]  # [V]
_LARGEST = np.float32(1e30)  # of a logit: differences of two are still finite


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, as keyword arguments."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    prompt_logprobs: int | None


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is to be continued. None stands for the default, except where it says what else it means.

    Attributes:
        max_new_tokens: at most so many; None: until the context is full
        temperature: 0 always takes the most likely token
        top_k: only the k most likely tokens; 0: all
        top_p: only the fewest tokens that together have this probability (Holtzman et al. 2020, section 3.1)
        min_p: only tokens at least this share as likely as the most likely one (Nguyen et al. 2024, section 3)
        repetition_penalty: divides positive logits of tokens that were there before, in prompt or answer, and
            multiplies negative ones (Keskar et al. 2019, section 4.1); 1: none
        seed: the same one gives the same text; None: another one for every answer
        stop: the answer ends before any of these strings
        logprobs: record the log-probability of every new token, and of this many most likely ones; None: no record
        prompt_logprobs: the same of the prompt's tokens from the second on, nothing of which a session then reuses

    InputError for what is of the wrong type or out of range.
    """

    max_new_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = 0
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name not in _NONE_SAYS_MORE:
                value = field.default
            if value is not None:
                value = _CHECKS[field.name](field.name, value)
            object.__setattr__(self, field.name, value)
        if "" in self.stop:
            raise InputError("stop holds an empty string, at which everything would end; leave it out")

    def changed(self, options: Mapping[str, Any]) -> SamplingParams:
        """With other values of these fields; None leaves `temperature` and other numbers as they are."""
        if others := options.keys() - _CHECKS.keys():
            raise InputError(unknown("parameter", min(others), _CHECKS))
        kept = {name for name in options if options[name] is None and name not in {*_NONE_SAYS_MORE, "stop"}}
        return replace(self, **{name: value for name, value in options.items() if name not in kept})

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def penalized(self, logits: FloatArray, seen: Sequence[int]) -> FloatArray:
        """[V] logits after the repetition penalty for the tokens `seen`. InputError for logits that are not finite."""
        if not np.isfinite(logits).all():
            raise InputError(
                "the model's logits hold NaN or infinity: its activations outgrow what this backend computes with, or "
                "a file is damaged; `llmc check` says whether it ever worked here"
            )
        if self.repetition_penalty == 1 or not seen:
            return logits
        tokens = np.unique(np.asarray(seen))
        changed = logits[tokens]
        logits = logits.copy()
        with np.errstate(over="ignore", divide="ignore"):  # of penalties far from 1
            penalized = np.where(changed > 0, changed / self.repetition_penalty, changed * self.repetition_penalty)
        logits[tokens] = penalized.clip(-_LARGEST, _LARGEST)
        return logits

    def distribution(self, logits: FloatArray, seen: Sequence[int] = ()) -> Probabilities:
        """[V] logits → [V] probabilities: penalty, temperature, top-k, top-p, min-p, in this order. Ties at the k-th
        place are all kept. InputError for logits that are not finite.
        """
        logits = self.penalized(logits, seen)
        if self.greedy:
            chosen = np.zeros(len(logits))
            chosen[logits.argmax()] = 1.0
            return chosen
        with np.errstate(over="ignore"):  # of temperatures near 0: minus infinity is right
            mass = np.exp((logits.astype(np.float64) - logits.max()) / self.temperature)
        if 0 < self.top_k < len(mass):
            mass[mass < np.partition(mass, -self.top_k)[-self.top_k]] = 0.0
        mass /= mass.sum()
        if self.top_p < 1:
            # All tokens below (1 - top_p) / V together are too little to be needed: only the others are sorted.
            likely = np.flatnonzero(mass >= min((1 - self.top_p) / len(mass), mass.max()))
            likely = likely[np.argsort(-mass[likely], kind="stable")]
            count = 1 + np.searchsorted(np.cumsum(mass[likely]), self.top_p)
            kept = np.zeros_like(mass)
            kept[likely[:count]] = mass[likely[:count]]
            mass = kept / kept.sum()
        if self.min_p:
            mass[mass < self.min_p * mass.max()] = 0.0
            mass /= mass.sum()
        return mass


_NONE_SAYS_MORE = frozenset(["max_new_tokens", "seed", "logprobs", "prompt_logprobs"])
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_new_tokens": lambda name, value: arguments.whole(name, value, 1),
    "temperature": lambda name, value: arguments.real(name, value, lambda x: x >= 0, "at least 0"),
    "top_k": lambda name, value: arguments.whole(name, value, 0),
    "top_p": lambda name, value: arguments.real(name, value, lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "min_p": lambda name, value: arguments.real(name, value, lambda x: 0 <= x <= 1, "from 0 to 1"),
    "repetition_penalty": lambda name, value: arguments.real(name, value, lambda x: x > 0, "above 0"),
    "seed": lambda name, value: arguments.whole(name, value, 0, 2**64 - 1),
    "stop": arguments.texts,
    "logprobs": lambda name, value: arguments.whole(name, value, 0),
    "prompt_logprobs": lambda name, value: arguments.whole(name, value, 0),
}


def draw(probability: Probabilities, generator: np.random.Generator) -> int:
    """A token, for one random number; the [V] probabilities need not sum to one."""
    possible = np.flatnonzero(probability)
    below = np.cumsum(probability[possible])
    place = np.searchsorted(below, generator.random() * below[-1], side="right")
    return int(possible[min(place, len(possible) - 1)])


def verify(
    drafts: Sequence[int],
    drafted: Sequence[Probabilities],
    wanted: Sequence[Probabilities],
    generator: np.random.Generator,
) -> list[int]:
    """Speculative sampling (Leviathan et al. 2023, algorithm 1): the tokens that follow, one to len(drafts) + 1.

    drafted[j] is the distribution draft j was drawn from, wanted[j] the model's own at that place, wanted[-1] the one
    after the last draft. The tokens are distributed as if the model had drawn each itself.
    """
    accepted: list[int] = []
    for token, q, p in zip(drafts, drafted, wanted, strict=False):
        if generator.random() * q[token] >= p[token]:
            return [*accepted, draw(np.maximum(p - q, 0.0), generator)]
        accepted.append(token)
    return [*accepted, draw(wanted[-1], generator)]


def verify_greedy(drafts: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The same of most likely tokens: `wanted` as far as the drafts agree, and one more."""
    agreed = 0
    while agreed < len(drafts) and drafts[agreed] == wanted[agreed]:
        agreed += 1
    return list(wanted[: agreed + 1])
