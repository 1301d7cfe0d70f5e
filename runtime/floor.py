"""How much of a loss is the runtime's: what a backend says against what torch said of the very same weights.

It does not depend on how strong the compression is, so that it tells a fault from a loss that was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmc.runtime.divergence import divergence, term
from llmc.runtime.uncertainty import standard_error

Array = NDArray[Any]


@dataclass(frozen=True)
class Floor:
    """The quantized weights as torch computes with them against the same weights as the backend does.

    Attributes:
        tokens: Predictions compared.
        kl_mean, kl_median, kl_p99, kl_max: Of the divergence of the backend's answers from torch's, in nats.
        kl_median_of_steps: Where tokens are read one by one, as answers are made, at the end of each window.
        weights_kl_mean, weights_kl_median: Of torch's answers with the quantized weights from the original's, at the
            same positions: what the quantization costs.
        top1: Share of positions at which both find the same token most likely.
        largest: Difference of log-probabilities, of all likely tokens at all positions, in nats.
    """

    tokens: int
    kl_mean: float
    kl_mean_stderr: float
    kl_median: float
    kl_median_of_steps: float
    kl_p99: float
    kl_max: float
    weights_kl_mean: float
    weights_kl_median: float
    top1: float
    largest: float


def recorded(reference: dict[str, Array]) -> int:
    """How many windows a reference has the quantized model's answers for; 0 in files of earlier llmc."""
    return len(reference["quantized_best"]) if "quantized_best" in reference else 0


def floor(
    reference: dict[str, Array], top: Array, tail: Array | None, best: Array, steps: int, vocab_size: int
) -> Floor | None:
    """Compare a backend's answers with those of torch; None where these are not on record.

    As in `divergence`, with the quantized model's probabilities in place of the original's. What was drawn from the
    original's tail, in proportion to its p, stands for the quantized model's q when it is weighted by q / p.

    Args:
        top, tail, best: See `Answers` of `check.py`.
        steps: Positions at the end of a window that are read one by one.
        vocab_size: Width of the logits.
    """
    windows = recorded(reference)
    if not windows:
        return None
    base, top = reference["quantized_top_logprobs"].astype(np.float64), top[:windows]
    kl = (np.exp(base) * term(base, top)).sum(-1)
    if tail is not None:
        q = reference["quantized_tail_logprobs"].astype(np.float64)
        weights = np.exp(q - reference["tail_logprobs"][:windows])
        kl += reference["tail_mass"][:windows] * (weights * term(q, tail[:windows])).mean(-1)
    known = {name: each[:windows] for name, each in reference.items()}
    drawn = known.get("quantized_tail_logprobs") if tail is not None else None
    weights_kl = divergence(known, known["quantized_top_logprobs"], drawn, vocab_size).values
    agreed = best[:windows] == reference["quantized_best"]
    return Floor(
        tokens=kl.size,
        kl_mean=float(kl.mean()),
        kl_mean_stderr=standard_error(kl),
        kl_median=float(np.median(kl)),
        kl_median_of_steps=float(np.median(kl[:, -steps:])),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        weights_kl_mean=float(weights_kl.mean()),
        weights_kl_median=float(np.median(weights_kl)),
        top1=float(agreed.mean()),
        largest=float(np.abs(base - top).max()),
    )
