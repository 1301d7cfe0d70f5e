"""The measures are those that llama.cpp's perplexity tool takes with --kl-divergence, told by plain loops here."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmc.runtime.check import Answers, compare
from llmc.runtime.divergence import Divergence, divergence

WINDOWS, POSITIONS, VOCABULARY = 3, 41, 30


def log_softmax(logits: list[float]) -> list[float]:
    peak = max(logits)
    total = peak + math.log(sum(math.exp(each - peak) for each in logits))
    return [each - total for each in logits]


def percentile(values: list[float], share: float) -> float:
    place = share * (len(values) - 1)
    low = int(place)
    return (1 - place + low) * values[low] + (place - low) * values[min(low + 1, len(values) - 1)]


def test_its_definitions_on_the_same_logits() -> None:
    rng = np.random.default_rng(3)
    logits = 2.5 * rng.standard_normal((WINDOWS, POSITIONS, VOCABULARY))
    other = logits + 0.8 * rng.standard_normal(logits.shape)
    true = rng.integers(0, VOCABULARY, (WINDOWS, POSITIONS))

    kld, p_diff, same, surprise = [], [], 0, [0.0, 0.0]
    for base, mine, token in zip(
        logits.reshape(-1, VOCABULARY).tolist(), other.reshape(-1, VOCABULARY).tolist(), true.flatten().tolist(),
        strict=True,
    ):  # fmt: skip
        p, q = log_softmax(base), log_softmax(mine)
        kld.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
        p_diff.append(math.exp(q[token]) - math.exp(p[token]))
        same += max(range(VOCABULARY), key=p.__getitem__) == max(range(VOCABULARY), key=q.__getitem__)
        surprise[0] -= p[token]
        surprise[1] -= q[token]
    count = len(kld)
    kld.sort()

    ours, theirs = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, other))
    top_ids = np.argsort(-ours)
    top, top_of_theirs = (np.take_along_axis(each, top_ids, -1) for each in (ours, theirs))
    before, after = (np.take_along_axis(each, true[..., None], -1)[..., 0] for each in (ours, theirs))
    reference = {"top_ids": top_ids, "top_logprobs": top, "true_logprobs": before}
    said = Answers(top_of_theirs, None, after, theirs.argmax(-1))
    exact = Divergence((np.exp(ours) * (ours - theirs)).sum(-1), "exact")
    for apart in (exact, divergence(reference, said.top, None, VOCABULARY)):
        report = compare(reference, said, apart)
        assert report.kl_kind == "exact"
        assert report.ppl_original == pytest.approx(math.exp(surprise[0] / count))
        assert report.ppl == pytest.approx(math.exp(surprise[1] / count))
        assert report.kl_mean == pytest.approx(sum(kld) / count)
        assert report.kl_median == pytest.approx(kld[count // 2])  # of an odd number
        assert report.kl_p99 == pytest.approx(percentile(kld, 0.99))
        assert report.kl_p999 == pytest.approx(percentile(kld, 0.999))
        assert report.kl_max == pytest.approx(kld[-1])
        assert report.kl_above_0_1 == sum(each > 0.1 for each in kld) / count
        assert report.kl_above_1 == sum(each > 1 for each in kld) / count
        assert report.top1 == same / count and 0 < same < count
        assert report.p_change == pytest.approx(sum(p_diff) / count)
        assert report.p_change_rms == pytest.approx(math.sqrt(sum(each**2 for each in p_diff) / count))
