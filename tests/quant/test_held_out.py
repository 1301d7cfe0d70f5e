"""Tokens that are held out of a Hessian tell whether it has too few."""

from __future__ import annotations

import pytest
import torch
from support.random_checkpoint import DEEPSEEK_V3

from llmc.convert.families import family_of
from llmc.convert.model.causal_lm import empty_layer
from llmc.quant.assign import Assignment
from llmc.quant.gptq import Quantized, solve
from llmc.quant.held_out import judge
from llmc.quant.hessian import HELD_OUT, CalibrationStats, HeldOut
from llmc.quant.layer_solver import Solved, linears, solve_modules
from llmc.quant.schemes import scheme
from llmc.quant.two_sided import damped, solve_two_sided

INT3 = scheme("int3-g32")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_held_out_does_not_enter_the_hessian() -> None:
    measured, parts = CalibrationStats(), [random(4, 10, 32), random(7, 32, seed=1), random(1000, 32, seed=2)]
    for part in parts:
        measured.add("x", part, part + 0.5)
    found, first = measured.moments["x"], parts[0].flatten(0, 1)
    assert found.held_out is not None and found.cross_covariance is not None
    assert [len(x) for x in found.held_out.x] == [5, 64] and found.tokens == 1047
    assert torch.equal(found.held_out.x[0], first[35:])
    torch.testing.assert_close(found.held_out.away[1], torch.full((64, 32), 0.5))
    seen = torch.cat([first[:35], parts[1], parts[2][:-64]])
    torch.testing.assert_close(found.symmetric(), seen.mT @ seen, rtol=1e-4, atol=1e-3)
    cross = (0.5 * torch.ones_like(seen)).mT @ seen
    torch.testing.assert_close(found.cross_covariance, cross, rtol=1e-4, atol=1e-3)
    for _ in range(9):
        measured.add("x", parts[2], parts[2])
    assert found.held_out.tokens == HELD_OUT


def solved(tokens: int, output: torch.Tensor | None) -> tuple[torch.Tensor, Quantized, HeldOut]:
    """Weights of two layers [24 + 8, 64], and what is held out; inputs are correlated, but few do not show how."""
    mix = random(64, 64, seed=3) * 0.2 + torch.eye(64)
    weight, x, held = random(1, 32, 64), random(tokens, 64, seed=1) @ mix, random(200, 64, seed=2) @ mix
    x[:, 7] = held[:, 7] = 0  # never active
    hessian = (x.mT @ x)[None]
    result = solve(weight, hessian, INT3) if output is None else solve_two_sided(weight, hessian, [output], INT3)
    return weight, result, HeldOut([held[:100], held[100:]])


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("tokens", [6, 600])
def test_a_layer_that_loses_there_is_rounded_to_nearest(tokens: int, two_sided: bool) -> None:
    gradient = random(400, 32, seed=4) @ (torch.eye(32) + 0.2 * random(32, 32, seed=5))
    output = gradient.mT @ gradient if two_sided else None
    weight, result, held = solved(tokens, output)
    before, x, metric = (
        result.qweight[0].clone(),
        torch.cat(held.x),
        torch.eye(32) if output is None else damped(output),
    )

    def lost(matrix: torch.Tensor) -> torch.Tensor:
        y = x @ matrix.mT
        return torch.stack([part.sum() for part in ((y @ metric) * y).split([24, 8], 1)])

    found = result.weight(0).dequantize() - weight[0]
    judged = judge(result, 0, weight[0], held, [24, 8], [] if output is None else [output])
    assert judged is not None and judged.overfits == [tokens == 6] * 2
    assert judged.error == pytest.approx((lost(found) / lost(weight[0])).tolist(), rel=1e-3)
    nearest = INT3.round_(weight[0] / INT3.expand(result.scales[0], (32, 64)))
    if tokens == 6:
        assert torch.equal(result.qweight[0].float(), nearest)
        found = result.weight(0).dequantize() - weight[0]
        assert judged.nearest_error == pytest.approx((lost(found) / lost(weight[0])).tolist(), rel=1e-3)
    else:
        assert torch.equal(result.qweight[0], before)


def test_what_the_original_says_is_what_counts() -> None:
    """Its inputs are such that the solver's weight, which is far from the layer's, says just what it says."""
    weight, result, held = solved(600, None)
    result.qweight.neg_()
    x, found = torch.cat(held.x), result.weight(0).dequantize()
    moved = x @ found.mT @ torch.linalg.pinv(weight[0]).mT - x
    alone, along = HeldOut([x]), HeldOut([x], [moved])
    verdicts = [judge(result, 0, weight[0], given, [32]) for given in (along, alone)]
    assert [verdict and verdict.overfits for verdict in verdicts] == [[False], [True]]


def test_few_tokens_are_no_judge() -> None:
    weight, result, held = solved(6, None)
    assert judge(result, 0, weight[0], HeldOut([held.x[0][:15]]), [32]) is None
    assert judge(result, 0, weight[0], None, [32]) is None


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_a_report_says_that_a_layer_overfits(method: str) -> None:
    spec = family_of(DEEPSEEK_V3).spec(DEEPSEEK_V3 | {"moe_intermediate_size": 64})
    modules = linears(empty_layer(spec, 1).to_empty(device="cpu"))
    names = [f"mlp.experts.{number}.down_proj" for number in range(2)]
    measured, done = CalibrationStats(), Solved()
    for number, name in enumerate(names):
        torch.nn.init.normal_(modules[name].weight)
        size = modules[name].in_features
        x = random(4000, size, seed=number) @ (torch.eye(size) + 0.3 * random(size, size, seed=5))
        if number == 0:  # its text says the same again and again, but for what is held out
            x[:-64] = x[:6].repeat(656, 1)
        measured.add(name, x, x if method == "gptaq" else None)
    solve_modules(modules, {name: Assignment(INT3, method) for name in names}, measured, done, 1 << 30)
    few, many = (done.reports[name] for name in names)
    assert few.fallback == f"rounded to nearest, since {method} overfits: 4000 tokens"
    assert few.output_error == few.nearest_error and few.held_out_error > few.held_out_nearest_error  # type: ignore
    assert many.fallback is None and many.held_out_error < many.held_out_nearest_error  # type: ignore[operator]
