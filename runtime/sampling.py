"""From logits to a token: greedy, or drawn from a tempered and truncated distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from llmc.errors import InputError
from llmc.runtime.backends import FloatArray

Probabilities = npt.NDArray[np.float64]  # [V]


class Options(TypedDict, total=False):
    """The fields of `Parameters`, as keyword arguments."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: str | Sequence[str]
    logprobs: int | None


@dataclass(frozen=True)
class Parameters:
    """How one prompt is to be continued.

    max_new_tokens: at most so many; None: until the context is full
    temperature: 0 always takes the most likely token
    top_k: only the k most likely tokens; 0: all
    top_p: only the fewest tokens that together have this probability (Holtzman et al. 2020, section 3.1)
    min_p: only tokens at least this share as likely as the most likely one (Nguyen et al. 2024, section 3)
    repetition_penalty: divides positive logits of tokens that were there before, in prompt or answer, and multiplies
        negative ones (Keskar et al. 2019, section 4.1); 1: none
    seed: the same one gives the same text
    stop: the answer ends before any of these strings
    logprobs: record the log-probability of every new token, and of this many most likely ones; None: no record
    """

    max_new_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: str | Sequence[str] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        limits: dict[str, tuple[bool, str]] = {
            "max_new_tokens": (self.max_new_tokens is None or self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "seed": (self.seed >= 0, "at least 0"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "at least 0"),
        }
        for name, (fine, limit) in limits.items():
            if not fine:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be {limit}")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if "" in self.stop:
            raise InputError("stop holds an empty string, at which everything would end; leave it out")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def penalised(self, logits: FloatArray, seen: Sequence[int]) -> FloatArray:
        """[V] logits after the repetition penalty for the tokens `seen`. InputError for logits that are not finite."""
        if not np.isfinite(logits).all():
            raise InputError("the model's logits hold NaN or infinity; check the artifact with `llmc check`")
        if self.repetition_penalty == 1 or not seen:
            return logits
        tokens = np.unique(np.asarray(seen))
        changed = logits[tokens]
        logits = logits.copy()
        logits[tokens] = np.where(changed > 0, changed / self.repetition_penalty, changed * self.repetition_penalty)
        return logits

    def distribution(self, logits: FloatArray, seen: Sequence[int] = ()) -> Probabilities:
        """[V] logits → [V] probabilities: penalty, temperature, top-k, top-p, min-p, in this order. Ties at the k-th
        place are all kept. InputError for logits that are not finite."""
        logits = self.penalised(logits, seen)
        if self.greedy:
            chosen = np.zeros(len(logits))
            chosen[logits.argmax()] = 1.0
            return chosen
        mass = np.exp((logits.astype(np.float64) - logits.max()) / self.temperature)
        if 0 < self.top_k < len(mass):
            mass[mass < np.partition(mass, -self.top_k)[-self.top_k]] = 0.0
        mass /= mass.sum()
        if self.top_p < 1:
            # All tokens below (1 - top_p) / V together are too little to be needed: only the others are sorted.
            likely = np.flatnonzero(mass > (1 - self.top_p) / len(mass))
            likely = likely[np.argsort(-mass[likely], kind="stable")]
            count = 1 + np.searchsorted(np.cumsum(mass[likely]), self.top_p)
            kept = np.zeros_like(mass)
            kept[likely[:count]] = mass[likely[:count]]
            mass = kept / kept.sum()
        if self.min_p:
            mass[mass < self.min_p * mass.max()] = 0.0
            mass /= mass.sum()
        return mass


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
