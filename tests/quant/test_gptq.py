import itertools
from typing import Any

import pytest
import torch

from llmc.quant import gptq
from llmc.quant.gptq import DAMPING, round_to_nearest, solve
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme
from llmc.quant.schemes.integer import Integer


def problem(
    experts: int = 3, out: int = 24, columns: int = 256, tokens: int = 1500, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [E, out, in] and Hessians [E, in, in] of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(experts, out, columns, generator=generator)
    mix = 0.3 * torch.randn(columns, columns, generator=generator) + torch.eye(columns)
    x = torch.randn(experts, tokens, columns, generator=generator) @ mix
    return weight, x.mT @ x


def output_error(weight: torch.Tensor, codes_times_scale: torch.Tensor, hessian: torch.Tensor) -> float:
    change, w, h = (t.double() for t in (codes_times_scale - weight, weight, hessian))
    return (((change @ h) * change).sum() / ((w @ h) * w).sum()).item()


def plain_gptq(weight: torch.Tensor, hessian: torch.Tensor, chosen: Scheme) -> torch.Tensor:
    """Column by column in float64, one matrix, no blocks: the algorithm as its paper states it."""
    w, h = weight.double().clone(), hessian.double().clone()
    diagonal = h.diagonal().clone()
    scales = chosen.expand(chosen.grid(weight, hessian.diagonal()).scales, weight.shape).double()
    order = hessian.diagonal().argsort(descending=True, stable=True)
    h.diagonal().add_(DAMPING * diagonal.mean())
    inverse = torch.linalg.inv(h[order][:, order])
    w, scales = w[:, order], scales[:, order]
    codes = torch.zeros_like(w)
    for i in range(w.shape[1]):
        codes[:, i] = chosen.round_((w[:, i] / scales[:, i]).float()).double()
        error = (w[:, i] - codes[:, i] * scales[:, i]) / inverse[0, 0]
        w[:, i:] -= error[:, None] * inverse[0]
        # Eliminate the fixed column from the inverse of what is left.
        inverse = (inverse - inverse[:, :1] @ inverse[:1] / inverse[0, 0])[1:, 1:]
    result = torch.zeros_like(codes)
    result[:, order] = codes
    return result


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128", "fp8-channel", "fp8-block", "nvfp4", "mxfp4"])
def test_agrees_with_the_plain_algorithm(name: str) -> None:
    weight, hessian = problem(experts=2)
    result = solve(weight, hessian, scheme(name))
    for expert in range(2):
        plain = plain_gptq(weight[expert], hessian[expert], scheme(name))
        scales = scheme(name).expand(result.scales[expert], weight.shape[1:])
        # A ratio that lies on a rounding boundary may fall to either side; what counts is that nearly none does.
        assert (result.qweight[expert].double() == plain).double().mean() > 0.99
        mine = output_error(weight[expert], result.weight(expert).dequantize(), hessian[expert])
        theirs = output_error(weight[expert], plain * scales, hessian[expert])
        assert mine == pytest.approx(theirs, rel=0.01)
        assert result.error[expert].item() == pytest.approx(mine, rel=1e-3)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g64", "int4-g128", "fp8-channel", "fp8-block", "nvfp4", "mxfp4"])
def test_better_than_rounding_on_correlated_inputs(name: str) -> None:
    weight, hessian = problem()
    result = solve(weight, hessian, scheme(name))
    for expert in range(3):
        rounded = output_error(
            weight[expert], round_to_nearest(weight[expert], scheme(name)).dequantize(), hessian[expert]
        )
        assert result.error[expert] < 0.7 * rounded
        assert result.nearest_error[expert] == pytest.approx(rounded, rel=0.2)  # by scales that know the diagonal


def test_a_batch_is_each_expert_alone() -> None:
    weight, hessian = problem(experts=4)
    together = solve(weight, hessian, scheme("int4-g64"))
    for expert in range(4):
        alone = solve(weight[expert], hessian[expert], scheme("int4-g64"))
        assert (alone.qweight[0] == together.qweight[expert]).float().mean() > 0.999
        assert torch.equal(alone.scales[0], together.scales[expert])


def test_columns_are_fixed_in_order_of_the_diagonal_and_groups_stay_where_they_are() -> None:
    weight, hessian = problem(experts=1)
    result = solve(weight, hessian, scheme("int4-g64"))
    diagonal = hessian[0].diagonal()[result.order[0]]
    assert (diagonal[:-1] >= diagonal[1:]).all()
    assert sorted(result.order[0].tolist()) == list(range(256))
    permutation = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    inside_groups = torch.cat([permutation + 64 * group for group in range(4)])
    moved = solve(weight[..., inside_groups], hessian[:, inside_groups][..., inside_groups], scheme("int4-g64"))
    assert torch.equal(moved.scales, result.scales)
    assert (moved.qweight == result.qweight[..., inside_groups]).float().mean() > 0.99


def test_damping_grows_until_a_singular_hessian_factorizes() -> None:
    weight, hessian = problem(experts=2, tokens=2000)
    x = torch.randn(8, 256)
    hessian[0] = x.mT @ x * 1e6
    hessian[0] -= 0.02 * hessian[0].diagonal().mean() * torch.eye(256)  # indefinite even with the first damping
    result = solve(weight, hessian, scheme("int4-g64"))
    assert DAMPING < result.damping[0] < torch.inf
    assert result.damping[1] == pytest.approx(DAMPING)
    assert result.qweight.abs().max() <= 8 and result.scales.isfinite().all()


def test_a_hessian_that_never_factorizes_means_rounding_to_nearest_and_says_so() -> None:
    weight, hessian = problem(experts=1)
    hessian[0] = torch.eye(256) - 1e4 * torch.ones(256, 256) * (1 - torch.eye(256))
    result = solve(weight, hessian, scheme("int4-g64"))
    assert result.damping[0] == torch.inf
    scales = scheme("int4-g64").grid(weight, hessian.diagonal(dim1=-2, dim2=-1)).scales
    nearest = scheme("int4-g64").round_(weight / scheme("int4-g64").expand(scales, (24, 256)))
    assert torch.equal(result.qweight[0].float(), nearest[0])


def test_dead_channels_become_zero() -> None:
    weight, hessian = problem(experts=1)
    hessian[:, 5] = 0
    hessian[:, :, 5] = 0
    result = solve(weight, hessian, scheme("int4-g64"))
    assert (result.qweight[0, :, 5] == 0).all()
    assert result.damping[0] == pytest.approx(DAMPING)


def dynamic(bits: int, kind: str) -> Scheme:
    """A scheme that is not offered, but solved and read."""
    size, *rest = kind.split("-")
    return Integer(bits, int(size[1:]), "asym" not in rest, dynamic_groups=True)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["g64", "g256", "channel", "g64-asym", "g64-actorder", "g32-asym-actorder"])
def test_every_integer_scheme_beats_rounding(bits: int, kind: str) -> None:
    weight, hessian = problem(experts=1)
    weight = weight + 0.5  # off center: zero points have something to do
    chosen = dynamic(bits, kind) if kind.endswith("actorder") else scheme(f"int{bits}-{kind}")
    result = solve(weight, hessian, chosen)
    solved, rounded = result.weight(), round_to_nearest(weight[0], chosen)
    assert chosen.stores(solved) and chosen.stores(rounded)
    limit = 1 << bits - 1
    assert -limit <= solved.qweight.min().item() and solved.qweight.max().item() < limit
    error = output_error(weight[0], solved.dequantize(), hessian[0])
    assert error == pytest.approx(result.error[0].item(), rel=0.02)
    assert error < 0.8 * output_error(weight[0], rounded.dequantize(), hessian[0])


def test_zero_points_help_weights_off_center() -> None:
    weight, hessian = problem(experts=1)
    errors = [solve(weight + 2, hessian, scheme(name)).error[0].item() for name in ("int4-g64", "int4-g64-asym")]
    assert errors[1] < 0.7 * errors[0]


def test_dynamic_groups_are_of_channels_that_matter_alike() -> None:
    weight, hessian = problem(experts=2)
    result = solve(weight, hessian, dynamic(4, "g64-actorder"))
    for expert in range(2):
        diagonal = hessian[expert].diagonal()
        by_group = [diagonal[result.g_idx[expert] == group] for group in range(4)]
        assert [len(members) for members in by_group] == [64] * 4
        assert all(high.min() >= low.max() for high, low in itertools.pairwise(by_group))


def test_asymmetric_calibration_approximates_what_the_original_says() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, _ = problem(experts=1)
    x0 = torch.randn(1500, 256, generator=generator) @ torch.randn(256, 256, generator=generator)
    x = x0 + 0.3 * x0.roll(1, dims=1)  # what layers before have made of it
    hessian, cross = x.mT @ x, (x0 - x).mT @ x

    def distance(result: Any) -> torch.Tensor:
        return ((x @ result.weight().dequantize().mT) - x0 @ weight[0].mT).square().sum()

    plain = solve(weight, hessian[None], scheme("int4-g64"))
    shifted = solve(weight, hessian[None], scheme("int4-g64"), cross[None])
    assert distance(shifted) < 0.3 * distance(plain)


def test_one_hessian_for_all_experts_is_theirs_each() -> None:
    weight, hessian = problem(experts=3)
    together = solve(weight, hessian[:1], scheme("int4-g64"))
    for expert in range(3):
        alone = solve(weight[expert], hessian[0], scheme("int4-g64"))
        assert (alone.qweight[0] == together.qweight[expert]).float().mean() > 0.999
        assert together.error[expert].item() == pytest.approx(alone.error[0].item(), rel=0.01)


def test_wide_matrices_are_factorized_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they become does not depend on it, though one of them needs more damping than the others."""
    weight, hessian = problem()
    hessian[1].diagonal().sub_(0.05 * hessian[1].diagonal().mean())
    together, factorize, asked = solve(weight, hessian, scheme("int4-g32")), torch.linalg.cholesky_ex, list[int]()

    def watched(matrix: torch.Tensor) -> Any:
        asked.append(len(matrix))
        return factorize(matrix)

    monkeypatch.setattr(gptq, "_BATCHED", 128)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", watched)
    alone = solve(weight, hessian, scheme("int4-g32"))
    assert len(asked) > len(weight) and set(asked) == {1}
    assert together.damping.unique().numel() > 1
    assert torch.equal(alone.damping, together.damping) and torch.equal(alone.qweight, together.qweight)


@pytest.mark.parametrize("size", [64, 96, 101, 256])
def test_a_triangle_is_inverted_by_halves(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "_SOLVED", 32)
    _, hessian = problem(experts=2, columns=size)
    upper = torch.linalg.cholesky(hessian).mT.contiguous()
    found = gptq._triangular_inverse(upper, torch.zeros_like(upper))
    want = torch.linalg.inv(upper.double())
    assert torch.equal(found, found.triu())
    assert (found - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("name", ["int4-g32", "int3-g32-asym", "fp8-channel"])
def test_a_layer_for_which_the_solver_loses_is_rounded_to_nearest(name: str, crossed: bool) -> None:
    """On 16 rows of nearly uncorrelated inputs, each a layer of its own, greed loses now and then."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(2, 16, 32, generator=generator), torch.randn(500, 32, generator=generator)
    hessian, cross = x.mT @ x, 0.01 * torch.randn(32, 500, generator=generator) @ x
    chosen, given = scheme(name), cross[None] if crossed else None
    result, unguarded = solve(weight, hessian[None], chosen, given, [1] * 16), solve(weight, hessian[None], chosen)
    assert result.error.shape == result.rounded.shape == (2, 16)
    assert result.rounded.any() and not result.rounded.all()
    assert torch.equal(result.error[result.rounded], result.nearest_error[result.rounded])
    assert (result.error <= 1.01 * result.nearest_error).all()
    assert not unguarded.rounded.any()  # of all rows together it wins
    for expert, row in result.rounded.nonzero().tolist():
        solved = result.weight(expert)
        zeros = None if solved.zero_points is None else chosen.expand(solved.zero_points, (16, 32))
        steps = chosen.round_(weight[expert] / chosen.expand(solved.scales, (16, 32)), zeros)
        assert torch.equal(solved.qweight[row].float(), chosen.to_codes(steps, zeros)[row].float())


def test_weights_that_lie_on_the_grid_are_no_reason_to_round() -> None:
    weight, hessian = problem(experts=1)
    exact = solve(weight, hessian, scheme("int8-g64")).weight().dequantize()
    result = solve(exact, hessian[0], scheme("int8-g64"))
    assert not result.rounded.any()


def test_without_a_factor_nothing_is_shifted() -> None:
    weight, hessian = problem(experts=1)
    hessian[0] = torch.eye(256) - 1e4 * torch.ones(256, 256) * (1 - torch.eye(256))
    plain = solve(weight, hessian, scheme("int4-g64"))
    shifted = solve(weight, hessian, scheme("int4-g64"), torch.ones_like(hessian))
    assert plain.damping[0] == torch.inf and torch.equal(plain.qweight, shifted.qweight)
