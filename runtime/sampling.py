"""From logits to a token: greedy, or drawn from a tempered and truncated distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmc.errors import InputError
from llmc.runtime.backends import FloatArray

Probabilities = npt.NDArray[np.float64]  # [V]


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1):
            given = f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}"
            raise InputError(f"{given}: the first two are at least 0, the last is above 0 and at most 1")

    def distribution(self, logits: FloatArray) -> Probabilities:
        """[V] logits → [V] probabilities after temperature, then top-k, then top-p (Holtzman et al. 2020, section 3.1:
        the fewest tokens that together have at least that probability). Ties at the k-th place are all kept.
        InputError for logits that are not finite."""
        if not np.isfinite(logits).all():
            raise InputError("the model's logits hold NaN or infinity; check the artifact with `llmc check`")
        if self.temperature == 0:
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
        return mass


def draw(probability: Probabilities, generator: np.random.Generator) -> int:
    """A token, for one random number; the [V] probabilities need not sum to one."""
    possible = np.flatnonzero(probability)
    below = np.cumsum(probability[possible])
    place = np.searchsorted(below, generator.random() * below[-1], side="right")
    return int(possible[min(place, len(possible) - 1)])


def verify(
    drafts: list[int], drafted: list[Probabilities], wanted: list[Probabilities], generator: np.random.Generator
) -> list[int]:
    """Speculative sampling (Leviathan et al. 2023, algorithm 1): the tokens that follow, one to len(drafts) + 1.

    drafted[j] is the distribution draft j was drawn from, wanted[j] the model's own at that place, wanted[-1] the one
    after the last draft. The tokens are distributed as if the model had drawn each itself; with one-hot (greedy)
    distributions they are exactly its own.
    """
    accepted: list[int] = []
    for token, q, p in zip(drafts, drafted, wanted, strict=False):
        if generator.random() * q[token] >= p[token]:
            return [*accepted, draw(np.maximum(p - q, 0.0), generator)]
        accepted.append(token)
    return [*accepted, draw(wanted[-1], generator)]
