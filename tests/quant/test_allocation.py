"""Bits to a budget: the least loss for the bytes, against the exact answer; ties, hulls, curves, budgets too small."""

import math
import random
from itertools import pairwise, product

import numpy as np
import pytest

from llmc.errors import InputError
from llmc.quant.allocation import Allocation, Choice, allocate, curve, hull, least_bytes

Groups = dict[str, list[Choice]]


def made_up(seed: int, count: int, size: int = 100) -> Groups:
    """Groups as models have them: of different sizes, and a third to a fifth of the loss for every bit more."""
    draw, groups = random.Random(seed), {}
    for number in range(count):
        parameters, falls = draw.randrange(1, size), draw.uniform(3, 5)
        loss = draw.lognormvariate(-4, 1.5)
        bits = {"int2": 2.25, "int3": 3.25, "int4": 4.25, "int8": 8.25, "fp8": 8.0}
        choices = [
            Choice(name, math.ceil(parameters * each * 4), loss * parameters * falls**-each * draw.uniform(0.8, 1.2))
            for name, each in bits.items()
        ]
        groups[f"group {number}"] = [*choices, Choice(None, 64 * parameters, 0.0)]
    return groups


def exact(groups: Groups, budget: int) -> float:
    """The least loss, by dynamic programming over bytes."""
    best = np.zeros(budget + 1)
    for choices in groups.values():
        following = np.full(budget + 1, np.inf)
        for choice in choices:
            if choice.bytes <= budget:
                lost = best[: budget + 1 - choice.bytes] + choice.loss
                following[choice.bytes :] = np.minimum(following[choice.bytes :], lost)
        best = following
    return float(best[budget])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [12, 100])
@pytest.mark.parametrize("bits", [2.3, 3.0, 4.5])
def test_close_to_the_exact_answer(seed: int, count: int, bits: float) -> None:
    groups = made_up(seed, count, 40)
    whole = sum(choices[-1].bytes for choices in groups.values())
    budget = round(whole * bits / 16)
    found = allocate(groups, budget)
    assert found.bytes <= budget
    assert found.loss <= 1.01 * exact(groups, budget) + 1e-15


@pytest.mark.parametrize("seed", range(20))
def test_a_few_groups(seed: int) -> None:
    """Where one edge is much, the table is fine enough to find the best of all 1,296 allocations."""
    groups = made_up(seed, 4)
    budget = round(sum(choices[-1].bytes for choices in groups.values()) * 0.26)
    every = [Allocation(dict(zip(groups, each, strict=True))) for each in product(*groups.values())]
    best = min(each.loss for each in every if each.bytes <= budget)
    assert allocate(groups, budget).loss == pytest.approx(best)


def test_order_does_not_matter() -> None:
    groups = made_up(5, 40)
    for choices in (*groups.values(),):
        choices.append(Choice("like int4", choices[2].bytes, choices[2].loss))  # ties
    turned = {name: [*reversed(groups[name])] for name in reversed(groups)}
    budget = round(sum(choices[-2].bytes for choices in groups.values()) * 0.2)
    assert allocate(groups, budget).chosen == allocate(turned, budget).chosen


def test_a_group_takes_one_of_its_own() -> None:
    groups = made_up(6, 10)
    found = allocate(groups, least_bytes(groups))
    assert found.bytes == least_bytes(groups)
    assert {choice.scheme for choice in found.chosen.values()} == {"int2"}
    rich = allocate(groups, 10**9)
    assert {choice.scheme for choice in rich.chosen.values()} == {None}


def test_what_cannot_fit() -> None:
    groups = {"one": [Choice("int4", 50, 0.1)], "two": [Choice("int4", 50, 0.1), Choice(None, 200, 0.0)]}
    with pytest.raises(InputError, match=r"least that these choices take is 100 bytes, more than the budget of 99"):
        allocate(groups, 99)
    with pytest.raises(InputError, match="one as int4 would cost nan nats"):
        allocate({"one": [Choice("int4", 50, math.nan)]}, 99)


def test_no_choice_that_is_worse_and_larger() -> None:
    choices = [
        Choice("a", 10, 1.0),
        Choice("same bytes", 10, 1.5),
        Choice("above the line", 20, 0.9),
        Choice("b", 30, 0.2),
        Choice("larger and worse", 40, 0.3),
        Choice(None, 50, 0.0),
    ]
    assert [choice.scheme for choice in hull(choices)] == ["a", "b", None]


def test_what_lies_above_the_hull_fills_the_rest() -> None:
    choices = [Choice("a", 10, 1.0), Choice("above the line", 20, 0.9), Choice("b", 30, 0.2)]
    assert allocate({"one": choices}, 25).chosen["one"].scheme == "above the line"


def test_the_curve_falls_and_flattens() -> None:
    groups = made_up(7, 20)
    points = curve(groups)
    assert points[0].bytes == least_bytes(groups)
    assert points[-1].loss == 0.0
    slopes = [(one.loss - other.loss) / (other.bytes - one.bytes) for one, other in pairwise(points)]
    assert all(one.bytes < other.bytes and one.loss > other.loss for one, other in pairwise(points))
    assert all(one >= other * (1 - 1e-9) for one, other in pairwise(slopes))
    for point in points[::12]:
        assert allocate(groups, point.bytes).loss <= point.loss * (1 + 1e-9)
