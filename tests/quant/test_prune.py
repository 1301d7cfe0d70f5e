from typing import Any

import pytest
import torch

from llmc.convert.spec import RouterSpec
from llmc.errors import InputError
from llmc.quant.prune import ExpertScores, kept_per_group, survivors


def router(experts: int = 16, groups: int = 4, top_k: int = 4, top_groups: int = 2) -> Any:
    return RouterSpec(experts, top_k, groups, top_groups, "sigmoid", True, True, 2.5)


def test_keep_must_give_whole_experts_in_every_group() -> None:
    assert kept_per_group(router(), 0.75) == 3
    assert kept_per_group(router(), 1.0) == 4
    assert kept_per_group(router(256, 8), 0.875) == 28
    with pytest.raises(InputError, match=r"0\.875 would leave 3\.5 of the 4 experts .* use one of 0\.5, 0\.75, 1$"):
        kept_per_group(router(), 0.875)


def test_top_k_must_stay_reachable() -> None:
    with pytest.raises(InputError, match=r"use one of 0\.5, 0\.75, 1"):
        kept_per_group(router(), 0.25)
    assert kept_per_group(router(groups=1, top_groups=1), 0.25) == 4


def test_survivors_are_the_best_of_each_group_in_their_order() -> None:
    scores = torch.tensor([1.0, 9, 3, 2, 8, 7, 6, 5])
    assert survivors(scores, num_groups=2, per_group=2) == [1, 2, 4, 5]
    assert survivors(scores, num_groups=1, per_group=3) == [1, 4, 5]
    assert survivors(torch.zeros(4), num_groups=1, per_group=2) == [0, 1]


def test_scores_are_means_and_sums_over_the_tokens_of_an_expert() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, weights = torch.randn(30, 32, generator=generator), torch.rand(30, generator=generator)
    scores = ExpertScores.empty(3)
    scores.add(1, outputs[:20], weights[:20])
    scores.add(1, outputs[20:], weights[20:])
    scores.add(2, outputs[:0], weights[:0])
    norms = [output.norm().item() for output in outputs]
    reap = sum(w.item() * n for w, n in zip(weights, norms, strict=True)) / 30
    assert scores.by("reap").tolist() == pytest.approx([0, reap, 0], rel=1e-6)
    assert scores.by("ean").tolist() == pytest.approx([0, sum(norms), 0], rel=1e-6)
    assert scores.by("frequency").tolist() == [0, 30, 0]


def test_super_experts_stand_out_by_their_largest_output() -> None:
    scores = ExpertScores.empty(5)
    for expert, largest in enumerate([1.0, 1.5, 60.0, 0.5, 2.0]):
        scores.add(expert, torch.tensor([[largest, -0.1]]), torch.ones(1))
    assert scores.protected() == [2]
    assert ExpertScores.empty(5).protected() == []
