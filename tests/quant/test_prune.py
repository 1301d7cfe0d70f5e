import pytest
import torch

from llmc.convert.model import MixtureOfExperts
from llmc.convert.spec import MixtureOfExpertsSpec, RouterSpec
from llmc.errors import InputError
from llmc.quant.prune import ReapScores, kept_per_group, survivors


def router(experts=16, groups=4, top_k=4, top_groups=2):
    return RouterSpec(experts, top_k, groups, top_groups, "sigmoid", True, True, 2.5)


def test_keep_must_give_whole_experts_in_every_group():
    assert kept_per_group(router(), 0.75) == 3
    assert kept_per_group(router(), 1.0) == 4
    assert kept_per_group(router(256, 8), 0.875) == 28
    with pytest.raises(InputError, match=r"0\.875 would leave 3\.5 of the 4 experts .* use one of 0\.5, 0\.75, 1$"):
        kept_per_group(router(), 0.875)


def test_top_k_must_stay_reachable():
    with pytest.raises(InputError, match=r"use one of 0\.5, 0\.75, 1"):
        kept_per_group(router(), 0.25)
    assert kept_per_group(router(groups=1, top_groups=1), 0.25) == 4


def test_survivors_are_the_best_of_each_group_in_their_order():
    scores = torch.tensor([1.0, 9, 3, 2, 8, 7, 6, 5])
    assert survivors(scores, num_groups=2, per_group=2) == [1, 2, 4, 5]
    assert survivors(scores, num_groups=1, per_group=3) == [1, 4, 5]
    assert survivors(torch.zeros(4), num_groups=1, per_group=2) == [0, 1]


def test_score_is_the_mean_of_routing_weight_times_output_norm():
    torch.manual_seed(0)
    moe = MixtureOfExperts(MixtureOfExpertsSpec(router(8, 2, 2, 1), 16, 0), 32).requires_grad_(False)
    torch.nn.init.normal_(moe.gate.weight)
    x = torch.randn(2, 30, 32)
    scores, handles = ReapScores.attach(moe)
    moe(x[:1])
    moe(x[1:])
    for handle in handles:
        handle.remove()
    moe(x)  # no longer observed
    tokens = x.flatten(0, 1)
    index, weight = moe.route(tokens)
    for number, expert in enumerate(moe.experts):
        terms = [
            weight[t, s].item() * expert(tokens[t]).norm().item()
            for t in range(60)
            for s in range(2)
            if index[t, s] == number
        ]
        assert scores.tokens[number] == len(terms)
        assert scores.mean()[number].item() == pytest.approx(sum(terms) / max(1, len(terms)), rel=1e-5)
