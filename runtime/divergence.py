"""The Kullback–Leibler divergence of a model's answers from those that are on record, of which a file holds a part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kind = Literal["exact", "sampled", "lower bound"]
_SMALLEST = 1e-9  # probability of a bucket that counts
_FARTHEST = 700.0  # nats between two log-probabilities whose exponential still is a number


@dataclass(frozen=True)
class Divergence:
    """Of every position, in nats.

    Attributes:
        values: float64 [N, P].
        kind: exact: summed up over the whole vocabulary; sampled: likely tokens summed up, and the others' share
            estimated without bias; lower bound: likely tokens summed up, all others taken for one.
        sampling_stderr: Standard error of the mean that comes of the sample alone, None unless there is one.
    """

    values: Array
    kind: Kind
    sampling_stderr: float | None = None


def divergence(reference: dict[str, Array], top: Array, tail: Array | None, vocab_size: int) -> Divergence:
    """Estimate the divergence of answers from a reference, as exactly as that allows.

    As probabilities p and q sum up to one, KL = Σ p · (d − 1 + exp(−d)) with d = ln p − ln q, in which no term is
    negative. The original's most likely tokens are summed up. Of the others, which have the mass m together, some were
    drawn in proportion to p: m times the mean of d − 1 + exp(−d) over the draw is, in expectation, their sum.

    Args:
        reference: See `read_reference`.
        top: Log-probabilities of its `top_ids` [N, P, K].
        tail: Those of its `tail_ids` [N, P, S]; None where it has none, as files of earlier llmc.
        vocab_size: Width of the logits.
    """
    base, top = reference["top_logprobs"].astype(np.float64), top.astype(np.float64)
    if tail is not None and "tail_ids" in reference:
        mass = reference["tail_mass"].astype(np.float64)
        terms = mass[..., None] * term(reference["tail_logprobs"].astype(np.float64), tail.astype(np.float64))
        values = (np.exp(base) * term(base, top)).sum(-1) + terms.mean(-1)
        return Divergence(values, "sampled", _sampling_stderr(terms))
    if base.shape[-1] == vocab_size:
        return Divergence((np.exp(base) * term(base, top)).sum(-1), "exact")
    return Divergence(_with_one_bucket(base, top), "lower bound")


def term(base: Array, other: Array) -> Array:
    """Return d − 1 + exp(−d), for log-probabilities that are d apart."""
    d = np.maximum(base - other, -_FARTHEST)
    return np.maximum(d + np.expm1(-d), 0.0)


def _sampling_stderr(terms: Array) -> float:
    """Of the mean over all positions of the mean of [N, P, S] terms. Neighbors in a systematic sample are alike, so
    that their differences tell its variance, not the spread of all (Wolter, Introduction to Variance Estimation, 8.2).
    """
    draws = terms.shape[-1]
    if draws < 2:
        return math.inf
    variances = np.square(np.diff(terms, axis=-1)).sum(-1) / (2 * (draws - 1) * draws)
    return math.sqrt(variances.sum()) / variances.size


def _with_one_bucket(base: Array, other: Array) -> Array:
    """With all tokens that are not on record taken for one: no more than the whole, by the log-sum inequality."""
    p, q = np.exp(base), np.exp(other)
    rest_p, rest_q = (np.clip(1.0 - x.sum(-1), 0.0, 1.0) for x in (p, q))
    logs = np.log(np.maximum(rest_p, _SMALLEST) / np.maximum(rest_q, _SMALLEST))
    return np.maximum((p * (base - other)).sum(-1) + np.where(rest_p > _SMALLEST, rest_p * logs, 0.0), 0.0)
