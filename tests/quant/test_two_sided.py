import pytest
import torch

from llmc.quant import two_sided
from llmc.quant.gptq import DAMPING, solve
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme
from llmc.quant.two_sided import OUTPUT_DAMPING, solve_two_sided


def second_moments(count: int, size: int, seed: int, tokens: int = 600) -> torch.Tensor:
    """[count, size, size], of correlated numbers."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(size) + 0.3 * torch.randn(count, size, size, generator=generator)
    x = torch.randn(count, tokens, size, generator=generator) @ mix
    return x.mT @ x


def weights(experts: int, out: int, columns: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(experts, out, columns, generator=torch.Generator().manual_seed(seed)) + 0.3


def damped(block: torch.Tensor) -> torch.Tensor:
    block = block.double() / block.double().diagonal().mean()
    return block + OUTPUT_DAMPING * torch.eye(len(block), dtype=torch.float64)


def lost(weight: torch.Tensor, found: torch.Tensor, hessian: torch.Tensor, output: torch.Tensor) -> float:
    change = (found - weight).double()
    return ((damped(output) @ change @ hessian.double()) * change).sum().item()


def unit(matrix: torch.Tensor) -> torch.Tensor:
    """R of R D R', float64, from the definition: the last row and column are eliminated first."""
    left, factor = matrix.double().clone(), torch.eye(len(matrix), dtype=torch.float64)
    for last in range(len(matrix) - 1, 0, -1):
        factor[:last, last] = left[:last, last] / left[last, last]
        left[:last, :last] -= factor[:last, last, None] * left[last, :last]
    return factor


def plainly(
    weight: torch.Tensor, hessian: torch.Tensor, output: torch.Tensor, chosen: Scheme, wide: list[torch.Tensor]
) -> torch.Tensor:
    """Steps, weight by weight in float64."""
    columns = hessian.diagonal().argsort(descending=True, stable=True)
    output = damped(output)
    rows = output.diagonal().argsort(descending=True, stable=True)
    hessian = hessian.double() + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    by_column, by_row = unit(hessian[columns][:, columns]), unit(output[rows][:, rows])
    w, (scales, zeros) = weight.double()[rows][:, columns], (x.double()[rows][:, columns] for x in wide)
    steps, change, moved = (torch.zeros_like(w) for _ in range(3))
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            left, above = change[i, :j] @ by_column[:j, j], by_row[:i, i] @ moved[:i, j]
            ratio = ((w[i, j] - left - above) / scales[i, j]).float()[None]
            steps[i, j] = chosen.round_(ratio, None if chosen.symmetric else zeros[i, j].float()[None])
            change[i, j] = steps[i, j] * scales[i, j] - w[i, j]
            moved[i, j] = change[i, j] + left
    return steps[rows.argsort()][:, columns.argsort()]


@pytest.mark.parametrize("name", ["int3-g32", "int4-g32-asym", "fp8-channel", "int4-g32-actorder", "nvfp4"])
def test_agrees_with_the_plain_algorithm(name: str) -> None:
    """Rows that fill no whole block, in two blocks of the output Hessian."""
    weight, hessian, chosen = weights(1, 75, 96), second_moments(1, 96, 0), scheme(name)
    outputs = [second_moments(1, 45, 1)[0], second_moments(1, 30, 3)[0]]
    result = solve_two_sided(weight, hessian, outputs, chosen).weight()
    scales = chosen.expand(result.scales, (75, 96))
    zeros = torch.zeros_like(scales) if result.zero_points is None else chosen.expand(result.zero_points, (75, 96))
    if result.g_idx is not None:
        scales = result.scales.float()[:, result.g_idx.long()]
    wide = [scales, zeros]
    parts = slice(0, 45), slice(45, 75)
    steps = torch.cat(
        [
            plainly(weight[0, part], hessian[0], output, chosen, [x[part] for x in wide])
            for part, output in zip(parts, outputs, strict=True)
        ]
    )
    codes = result.qweight.float() - zeros
    assert (codes == steps.float()).float().mean() > 0.99


@pytest.mark.parametrize("name", ["int2-g32", "int3-g32-asym", "int4-channel", "fp8-block", "nvfp4"])
def test_loses_less_than_one_side_alone(name: str) -> None:
    weight, hessian, output = weights(2, 48, 96), second_moments(2, 96, 0), second_moments(1, 48, 1)
    one, two = solve(weight, hessian, scheme(name)), solve_two_sided(weight, hessian, [output[0]], scheme(name))
    for expert in range(2):
        errors = [
            lost(weight[expert], each.weight(expert).dequantize(), hessian[expert], output[0]) for each in (one, two)
        ]
        assert errors[1] < 0.995 * errors[0]
        whole = lost(torch.zeros(48, 96), weight[expert], hessian[expert], output[0])
        assert two.error[expert].item() == pytest.approx(errors[1] / whole, rel=0.02)
        assert two.error[expert] < two.nearest_error[expert]


@pytest.mark.parametrize("crossed", [False, True])
def test_without_gradients_it_is_gptq(crossed: bool) -> None:
    weight, hessian = weights(2, 40, 96), second_moments(2, 96, 0)
    cross = 0.02 * hessian.roll(1, -1) if crossed else None
    nothing = [torch.zeros(24, 24), torch.zeros(16, 16)]
    one = solve(weight, hessian, scheme("int4-g32"), cross)
    two = solve_two_sided(weight, hessian, nothing, scheme("int4-g32"), cross, [24, 16])
    assert (one.qweight == two.qweight).float().mean() > 0.999 and torch.equal(one.scales, two.scales)
    assert two.error.shape == two.rounded.shape == (2, 2)


def test_blocks_of_one_size_are_fixed_together_and_each_as_if_alone() -> None:
    weight, hessian, outputs = weights(1, 96, 64), second_moments(1, 64, 0), second_moments(3, 32, 1)
    together = solve_two_sided(weight, hessian, list(outputs), scheme("int3-g32"))
    for number, output in enumerate(outputs):
        part = slice(32 * number, 32 * number + 32)
        alone = solve_two_sided(weight[:, part], hessian, [output], scheme("int3-g32"))
        assert (alone.qweight[0] == together.qweight[0, part]).float().mean() > 0.999


def test_one_hessian_for_all_experts_is_theirs_each() -> None:
    weight, hessian, output = weights(3, 33, 64), second_moments(1, 64, 0), second_moments(1, 33, 1)[0]
    together = solve_two_sided(weight, hessian, [output], scheme("int3-g32"))
    for expert in range(3):
        alone = solve_two_sided(weight[expert : expert + 1], hessian, [output], scheme("int3-g32"))
        assert (alone.qweight[0] == together.qweight[expert]).float().mean() > 0.999


def test_a_layer_for_which_it_loses_is_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = weights(1, 64, 64), second_moments(1, 64, 0)
    outputs = list(second_moments(2, 32, 1))
    fixed = two_sided._fix
    spoiled = torch.zeros(1, 32, 64)
    monkeypatch.setattr(two_sided, "_fix", lambda *given: torch.cat([fixed(*given)[:, :32], spoiled], 1))
    result = solve_two_sided(weight, hessian, outputs, scheme("int4-g32"), rows=[32, 32])
    assert result.rounded.tolist() == [[False, True]]
    assert result.error[0, 1] == result.nearest_error[0, 1] and result.error[0, 0] < result.nearest_error[0, 0]
    steps = scheme("int4-g32").round_(weight / scheme("int4-g32").expand(result.scales, (64, 64)))
    assert torch.equal(result.qweight[0, 32:].float(), steps[0, 32:])


def test_a_hessian_that_never_factorizes_means_rounding_to_nearest() -> None:
    weight, outputs = weights(1, 32, 64), list(second_moments(1, 32, 1))
    hessian = (torch.eye(64) - 1e4 * torch.ones(64, 64) * (1 - torch.eye(64)))[None]
    result = solve_two_sided(weight, hessian, outputs, scheme("int4-g32"), torch.ones_like(hessian))
    steps = scheme("int4-g32").round_(weight / scheme("int4-g32").expand(result.scales, (32, 64)))
    assert result.damping[0] == torch.inf and torch.equal(result.qweight.float(), steps)


def test_channels_that_are_never_active_become_zero() -> None:
    weight, hessian, outputs = weights(1, 32, 64), second_moments(1, 64, 0), list(second_moments(1, 32, 1))
    hessian[:, 5] = hessian[:, :, 5] = 0
    assert not solve_two_sided(weight, hessian, outputs, scheme("int4-g32")).qweight[0, :, 5].any()
