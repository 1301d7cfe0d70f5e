"""Paired statistics against published examples, scipy and their own promises."""

from __future__ import annotations

import numpy as np
import pytest

from llmc import paired


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),  # the middle term is in both tails
        (0, 6, 2 / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_sign_test_by_hand(first: int, second: int, expected: float) -> None:
    assert paired.sign_test(first, second) == paired.sign_test(second, first) == pytest.approx(expected)


def test_sign_test_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first, second in [(1, 9), (59, 6), (700, 640), (0, 2000)]:
        assert paired.sign_test(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("gained", "lost", "count", "low", "high"),
    [
        # Tango's example, 44 cross-over trials of two ways to disinfect lenses: 43 alike, 1 for the other one alone.
        (0, 1, 44, -0.118, 0.061),
        (0, 0, 100, -0.0370, 0.0370),  # z² / (n + z²)
        (0, 50, 50, -1.0, -0.8573),  # 2z² / (n + z²) - 1
    ],
)
def test_intervals_of_differences_of_shares(gained: int, lost: int, count: int, low: float, high: float) -> None:
    assert paired.share_interval(gained, lost, count) == pytest.approx((low, high), abs=2e-3)
    turned = paired.share_interval(lost, gained, count)
    assert (-turned.high, -turned.low) == pytest.approx(paired.share_interval(gained, lost, count), abs=1e-9)


def test_intervals_of_shares_hold_where_few_answers_change() -> None:
    """Of 300 audits of 60 questions, of which 5 % get worse and 2 % better, nine in ten intervals hold at least; the
    bootstrap's hold less often.
    """
    generator, truth = np.random.default_rng(0), 0.02 - 0.05
    held = resampled = 0
    for gained, lost, same in generator.multinomial(60, [0.02, 0.05, 0.93], 300):
        found = paired.share_interval(int(gained), int(lost), 60)
        held += found.low <= truth <= found.high
        drawn = generator.multinomial(60, [gained / 60, lost / 60, same / 60], 500)
        low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / 60, [0.025, 0.975])
        resampled += low <= truth <= high
    assert held >= 0.93 * 300 and resampled < held


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    low, high = paired.mean_interval(list(values))
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert paired.mean_interval(list(values)) == (low, high)
    assert paired.mean_interval([0.25]) == (0.25, 0.25)


def test_bootstrap_draws_the_same_however_much_is_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [float(each) for each in np.random.default_rng(2).normal(size=50)]
    whole = paired.mean_interval(values)
    monkeypatch.setattr(paired, "_DRAWN", 700)
    assert paired.mean_interval(values) == whole


def test_calibration_error_by_hand() -> None:
    # Bins of 0.8…0.9 (two answers, one correct) and 0.3…0.4 (two answers, none correct), and 1.0 in the last bin.
    confidences, correct = [0.85, 0.81, 0.32, 0.36, 1.0], [1.0, 0.0, 0.0, 0.0, 1.0]
    expected = (abs(1 - 1.66) + abs(0 - 0.68) + 0) / 5
    drawn = np.array([[0, 1, 2, 3, 4], [4, 4, 4, 4, 4], [0, 0, 0, 0, 0]])
    weights = np.array([np.bincount(row, minlength=5) for row in drawn], float)
    found = paired.calibration_error(confidences, correct, np.arange(5))
    assert found(weights) == pytest.approx([expected, 0.0, 0.15])
    pairs = paired.calibration_error(confidences, correct, np.array([0, 0, 1, 1, 2]))
    assert pairs(np.array([[1.0, 1.0, 1.0], [0, 2, 0]])) == pytest.approx([expected, 0.34])


def test_groups_of_one_are_independent_samples() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, 80)
    alone = np.arange(80)
    assert paired.mean_interval(values, alone) == paired.mean_interval(values)
    assert paired.design_effect(values, alone) == 1.0


def test_samples_that_repeat_each_other_are_worth_one() -> None:
    """Four copies of each of 50 samples say what the 50 say."""
    once = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], 50, p=[0.2, 0.7, 0.1])
    copies, groups = np.repeat(once, 4), np.repeat(np.arange(50), 4)
    assert paired.mean_interval(copies, groups) == pytest.approx(paired.mean_interval(once))
    assert paired.design_effect(copies, groups) == pytest.approx(4 * 50 / 49)
    narrow, wide = paired.mean_interval(copies), paired.mean_interval(once)
    assert (narrow.high - narrow.low) < 0.6 * (wide.high - wide.low)
    few = np.zeros(200)
    few[:8] = 1.0
    assert paired.design_effect(few, groups) == 4.0, "two groups changed: samples of a group count as one"


def test_intervals_hold_where_samples_come_in_groups() -> None:
    """Of 300 audits of 60 templates with five questions each, which mostly change together."""
    generator, groups, held, naive = np.random.default_rng(5), np.repeat(np.arange(60), 5), 0, 0
    for _ in range(300):
        template = generator.choice([-1.0, 0.0, 1.0], 60, p=[0.1, 0.85, 0.05])
        values = np.where(generator.random(300) < 0.8, np.repeat(template, 5), 0.0)
        gained, lost, truth = (values > 0).sum(), (values < 0).sum(), 0.8 * -0.05
        worth = paired.design_effect(values, groups)
        found = paired.share_interval(gained / worth, lost / worth, 300 / worth)
        held += found.low <= truth <= found.high
        bare = paired.share_interval(gained, lost, 300)
        naive += bare.low <= truth <= bare.high
    assert held >= 0.92 * 300 and naive < 0.8 * 300


def test_kappa_of_a_published_example() -> None:
    # 50 proposals, read by two: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no; 0.4, as textbooks have it.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert paired.kappa(first, second) == pytest.approx(0.4)
    assert paired.kappa(first, first) == 1.0
    assert paired.kappa([], []) is None and paired.kappa(["a", "a"], ["a", "a"]) is None
