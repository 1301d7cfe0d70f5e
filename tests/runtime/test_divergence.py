"""The divergence over a vocabulary, told by likely tokens and a sample of the others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmc.quant.tail_sample import tail_sample
from llmc.runtime.divergence import Divergence, divergence

Array = NDArray[Any]
POSITIONS, VOCABULARY, KEPT, DRAWN = 40, 1500, 16, 16


@pytest.fixture(scope="module")
def models() -> tuple[Array, Array]:
    """Log-probabilities of two of them [1, POSITIONS, VOCABULARY]; unlikely tokens differ more than likely ones."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((1, POSITIONS, VOCABULARY))
    other = logits + (0.1 + 0.05 * np.abs(logits - logits.max(-1, keepdims=True))) * rng.standard_normal(logits.shape)
    ours, theirs = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, other))
    return ours, theirs


def estimate(ours: Array, theirs: Array, offsets: Array) -> Divergence:
    said = torch.from_numpy(ours[0])
    likely = said.topk(KEPT).indices
    drawn = tail_sample(said, said.exp().scatter(-1, likely, 0.0), torch.from_numpy(offsets), DRAWN)
    top_ids, tail_ids = (each.numpy()[None] for each in (likely, drawn))
    reference = {
        "top_ids": top_ids,
        "top_logprobs": np.take_along_axis(ours, top_ids, -1),
        "tail_ids": tail_ids,
        "tail_logprobs": np.take_along_axis(ours, tail_ids, -1),
    }
    reference["tail_mass"] = 1 - np.exp(reference["top_logprobs"]).sum(-1)
    top, tail = (np.take_along_axis(theirs, ids, -1) for ids in (top_ids, tail_ids))
    return divergence(reference, top, tail, VOCABULARY)


def test_it_is_unbiased_never_negative_and_as_uncertain_as_it_says(models: tuple[Array, Array]) -> None:
    exact = (np.exp(models[0]) * (models[0] - models[1])).sum(-1)
    rng = np.random.default_rng(1)
    draws = [estimate(*models, rng.random(POSITIONS)) for _ in range(400)]
    means = np.array([draw.values.mean() for draw in draws])
    assert all(draw.kind == "sampled" and draw.values.min() >= 0 for draw in draws)
    assert abs(means.mean() - exact.mean()) < 4 * means.std() / math.sqrt(len(means))
    every = np.mean([draw.values for draw in draws], 0), np.std([draw.values for draw in draws], 0)
    assert (np.abs(every[0] - exact) < 5 * every[1] / math.sqrt(len(draws))).all(), "at every position"
    stated = np.array([draw.sampling_stderr for draw in draws], float)
    assert 0.85 < np.sqrt(np.square(stated).mean()) / means.std() < 1.2
    assert means.std() < 0.1 * exact.mean()


def test_without_a_sample_it_is_a_lower_bound(models: tuple[Array, Array]) -> None:
    ours, theirs = models
    exact = (np.exp(ours) * (ours - theirs)).sum(-1)
    top_ids = np.argsort(-ours)[..., :KEPT]
    reference = {"top_ids": top_ids, "top_logprobs": np.take_along_axis(ours, top_ids, -1)}
    found = divergence(reference, np.take_along_axis(theirs, top_ids, -1), None, VOCABULARY)
    assert found.kind == "lower bound" and found.sampling_stderr is None
    assert (found.values < exact).all() and found.values.mean() < 0.8 * exact.mean()
    p, q = (np.exp(np.take_along_axis(each, top_ids, -1)) for each in models)
    p, q = (np.concatenate([each, 1 - each.sum(-1, keepdims=True)], -1) for each in (p, q))
    np.testing.assert_allclose(found.values, (p * np.log(p / q)).sum(-1), rtol=1e-9)


def test_all_tokens_are_the_exact_sum(models: tuple[Array, Array]) -> None:
    ours, theirs = models
    ids = np.argsort(-ours)
    reference = {"top_ids": ids, "top_logprobs": np.take_along_axis(ours, ids, -1)}
    found = divergence(reference, np.take_along_axis(theirs, ids, -1), None, VOCABULARY)
    assert found.kind == "exact"
    np.testing.assert_allclose(found.values, (np.exp(ours) * (ours - theirs)).sum(-1), rtol=1e-9)


def test_equal_answers_and_tails_without_mass_are_no_apart() -> None:
    """Not even where the second model holds for possible what the first has no probability for."""
    top = np.log(np.full((1, 2, 2), 0.5))
    reference = {
        "top_ids": np.array([[[0, 1], [0, 1]]]),
        "top_logprobs": top,
        "tail_ids": np.array([[[2, 3], [2, 3]]]),
        "tail_logprobs": np.full((1, 2, 2), -2000.0),
        "tail_mass": np.zeros((1, 2)),
    }
    found = divergence(reference, top, np.full((1, 2, 2), -30.0), 9)
    assert found.values.tolist() == [[0, 0]] and found.sampling_stderr == 0
