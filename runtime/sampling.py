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
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(f"{self}: temperature and top_k are at least 0, top_p is above 0 and at most 1")

    def distribution(self, logits: FloatArray) -> Probabilities:
        """[V] logits → [V] float64 probabilities after temperature, then top-k, then top-p (Holtzman et al. 2020)."""
        if not np.isfinite(logits).all():
            raise InputError("the model's logits hold NaN or infinity; check the artifact with `llmc check`")
        if self.temperature == 0:
            chosen = np.zeros(len(logits))
            chosen[logits.argmax()] = 1.0
            return chosen
        scaled = logits.astype(np.float64) / self.temperature
        probability = np.exp(scaled - scaled.max())
        probability /= probability.sum()
        if 0 < self.top_k < len(logits):
            probability[np.argsort(-probability, kind="stable")[self.top_k :]] = 0.0
            probability /= probability.sum()
        if self.top_p < 1:
            order = np.argsort(-probability, kind="stable")
            before = np.cumsum(probability[order]) - probability[order]
            probability[order[before >= self.top_p]] = 0.0
            probability /= probability.sum()
        return probability


def draw(probability: Probabilities, generator: np.random.Generator) -> int:
    """A token from [V] probabilities; a certain one takes no random number."""
    best = int(probability.argmax())
    if probability[best] == 1.0:
        return best
    return int(np.searchsorted(np.cumsum(probability), generator.random() * probability.sum(), side="right"))


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
        if p[token] < q[token] and generator.random() * q[token] >= p[token]:
            rest = np.maximum(p - q, 0.0)
            return [*accepted, draw(rest / rest.sum(), generator)]
        accepted.append(token)
    return [*accepted, draw(wanted[-1], generator)]
