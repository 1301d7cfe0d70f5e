from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmc.errors import InputError
from llmc.runtime.sampling import SamplingParams, draw, verify

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0], np.float32)


def test_greedy_is_certain() -> None:
    assert SamplingParams().distribution(LOGITS).tolist() == [1, 0, 0, 0, 0]
    assert draw(SamplingParams().distribution(LOGITS), np.random.default_rng(0)) == 0


def test_temperature_top_k_and_top_p() -> None:
    expected = np.exp(LOGITS.astype(np.float64) / 0.7)
    expected /= expected.sum()
    np.testing.assert_allclose(SamplingParams(temperature=0.7).distribution(LOGITS), expected, rtol=1e-6)
    two = SamplingParams(temperature=0.7, top_k=2).distribution(LOGITS)
    np.testing.assert_allclose(two, [*(expected[:2] / expected[:2].sum()), 0, 0, 0], rtol=1e-6)
    # The smallest set of likeliest tokens that reaches top_p.
    mass = expected.cumsum()
    nucleus = SamplingParams(temperature=0.7, top_p=float(mass[1] + 1e-6)).distribution(LOGITS)
    assert (nucleus > 0).tolist() == [True, True, True, False, False]
    assert (SamplingParams(temperature=0.7, top_p=1e-9).distribution(LOGITS) > 0).sum() == 1


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_of_a_large_vocabulary(top_p: float) -> None:
    """Against a plain walk down the sorted list."""
    logits = 3 * np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    everything = SamplingParams(temperature=1.0).distribution(logits)
    expected, total = np.zeros(5000), 0.0
    for token in sorted(range(5000), key=lambda token: -everything[token]):
        if total >= top_p:
            break
        expected[token] = everything[token]
        total += everything[token]
    np.testing.assert_allclose(
        SamplingParams(temperature=1.0, top_p=top_p).distribution(logits), expected / total, rtol=1e-9
    )


def test_min_p_and_repetition_penalty() -> None:
    everything = SamplingParams(temperature=1.0).distribution(LOGITS)
    kept = SamplingParams(temperature=1.0, min_p=0.2).distribution(LOGITS)
    likely = everything >= 0.2 * everything.max()
    np.testing.assert_allclose(kept, np.where(likely, everything, 0) / everything[likely].sum(), rtol=1e-9)
    assert 1 < likely.sum() < 5
    penalty = SamplingParams(temperature=1.0, repetition_penalty=2.0)
    changed = np.array([1.0, 1.0, 0.5, 0.0, -2.0])  # tokens 0 and 4 were there before
    expected = np.exp(changed) / np.exp(changed).sum()
    np.testing.assert_allclose(penalty.distribution(LOGITS, [0, 4, 0]), expected, rtol=1e-6)
    assert LOGITS[0] == 2.0 and SamplingParams(repetition_penalty=4.0).distribution(LOGITS, [0]).argmax() == 1


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        SamplingParams().distribution(np.array([1.0, np.nan], np.float32))


def agree(counts: NDArray[Any], probability: NDArray[Any]) -> Any:
    """Pearson's chi-square statistic stays below its 99.9 % quantile (for up to 24 degrees of freedom)."""
    expected = counts.sum() * probability
    assert (counts[expected == 0] == 0).all()
    used = expected > 0
    statistic = ((counts[used] - expected[used]) ** 2 / expected[used]).sum()
    return statistic < {1: 10.8, 4: 18.5, 24: 51.2}[int(used.sum()) - 1]


def test_draws_follow_the_distribution() -> None:
    generator, probability = np.random.default_rng(0), SamplingParams(temperature=1.0).distribution(LOGITS)
    counts = np.bincount([draw(probability, generator) for _ in range(20_000)], minlength=5)
    assert agree(counts, probability)
    assert not agree(counts, np.full(5, 0.2))  # the statistic can tell


def test_speculative_sampling_keeps_the_models_distribution() -> None:
    """Two tokens, the second depending on the first, whatever the drafts are drawn from."""
    random = np.random.default_rng(1)
    first = random.dirichlet(np.ones(5))
    second = random.dirichlet(np.ones(5), size=5)  # of the model, by first token
    draft_first, draft_second = random.dirichlet(np.ones(5)), random.dirichlet(np.ones(5), size=5)
    counts = np.zeros((5, 5))
    for _ in range(40_000):
        a = draw(draft_first, random)
        b = draw(draft_second[a], random)
        tokens = verify([a, b], [draft_first, draft_second[a]], [first, second[a], second[b]], random)
        assert 1 <= len(tokens) <= 3
        following = tokens[1] if len(tokens) > 1 else draw(second[tokens[0]], random)
        counts[tokens[0], following] += 1
    assert agree(counts.ravel(), (first[:, None] * second).ravel())
    assert not agree(counts.ravel(), (draft_first[:, None] * draft_second).ravel())


def test_greedy_verification_accepts_exactly_the_models_own_tokens() -> None:
    one_hot = np.eye(5)
    generator = np.random.default_rng(0)
    wanted = [one_hot[3], one_hot[1], one_hot[4]]
    assert verify([3, 1], [one_hot[3], one_hot[1]], wanted, generator) == [3, 1, 4]
    assert verify([3, 2], [one_hot[3], one_hot[2]], wanted, generator) == [3, 1]
    assert verify([0, 1], [one_hot[0], one_hot[1]], wanted, generator) == [3]
    assert verify([], [], [one_hot[2]], generator) == [2]
