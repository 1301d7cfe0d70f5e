"""NVFP4 and MXFP4 that llmc makes: the grid, its scales, and what modules that read one input share."""

from pathlib import Path

import pytest
import torch
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.gptq import round_to_nearest, solve
from llmc.quant.layerwise import quantize
from llmc.quant.schemes import fp4, scheme

VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
NAMES = "nvfp4", "mxfp4"


def weights(rows: int = 48, columns: int = 256, seed: int = 0) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def squared_error(weight: torch.Tensor, name: str) -> float:
    return (round_to_nearest(weight, scheme(name)).dequantize() - weight).square().sum().item()


def test_rounds_to_the_nearest_value_and_ties_to_the_even_code() -> None:
    middles = (VALUES[1:] + VALUES[:-1]) / 2
    even = torch.stack([VALUES[code + code % 2] for code in range(7)])
    points = torch.cat([VALUES, middles, middles.nextafter(torch.tensor(9.0)), middles.nextafter(torch.tensor(0.0))])
    wanted = torch.cat([VALUES, even, VALUES[1:], VALUES[:-1]])
    points, wanted = torch.cat([points, torch.tensor([6.5, 1e30])]), torch.cat([wanted, torch.tensor([6.0, 6.0])])
    for name in NAMES:
        assert torch.equal(scheme(name).round_(points.clone()), wanted)
        assert torch.equal(scheme(name).round_(-points), -wanted)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1.0, 1e6])
def test_scales_of_nvfp4_are_e4m3_of_one_power_of_two(size: float) -> None:
    weight = weights() * torch.logspace(-2, 0, 48)[:, None]
    weight *= size / weight.abs().max()
    weight[3, 16:32] = 0.0
    made = round_to_nearest(weight, scheme("nvfp4"))
    levels = made.two_level
    assert levels is not None and torch.frexp(levels.divisor).mantissa.item() == 0.5
    assert torch.equal(levels.codes.float() / levels.divisor, made.scales)
    assert torch.equal(made.dequantize(torch.bfloat16).float(), made.dequantize())  # whatever programs decode to
    assert (made.dequantize()[3, 16:32] == 0).all()
    assert (made.dequantize() - weight).norm() < 0.1 * weight.norm()


def test_scales_of_mxfp4_are_those_of_the_specification_or_next_to_them() -> None:
    weight = weights()
    made = round_to_nearest(weight, scheme("mxfp4"))
    specified = torch.exp2(weight.unflatten(1, (-1, 32)).abs().amax(-1).log2().floor() - 2)
    assert set((made.scales / specified).unique().tolist()) == {1.0, 2.0}
    assert torch.equal(made.scales, made.scales.to(torch.float8_e8m0fnu).float())


def test_four_over_six_beats_six_and_the_search_beats_both(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, errors = weights(), []
    for steps in ((0,), (0, 4, 5), fp4._STEPS):
        monkeypatch.setattr(fp4, "_STEPS", steps)
        errors.append(squared_error(weight, "nvfp4"))
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.95 * errors[1]
    found = squared_error(weight, "mxfp4")
    monkeypatch.setattr(fp4, "_POWERS", (0,))
    assert found < 0.97 * squared_error(weight, "mxfp4")


def test_bits_of_scales_buy_accuracy() -> None:
    errors = [squared_error(weights(), name) for name in ("int4-g32", "nvfp4", "int4-g64", "mxfp4")]
    assert errors == sorted(errors)


@pytest.mark.parametrize("name", NAMES)
def test_importance_moves_the_scale_towards_channels_that_matter(name: str) -> None:
    weight, loud = weights(rows=16), torch.ones(256)
    loud[::32] = 1e4
    plain, weighted = (scheme(name).grid(weight, importance).scales for importance in (None, loud))
    errors = []
    for scales in (plain, weighted):
        wide = scheme(name).expand(scales, (16, 256))
        errors.append((((scheme(name).round_(weight / wide) * wide - weight) ** 2) * loud).sum())
    assert errors[1] < 0.85 * errors[0]


def test_each_expert_has_a_scale_of_its_own_and_rows_of_one_input_share_it() -> None:
    weight = torch.stack([weights(seed=1), 100 * weights(seed=2)])
    weight[0, 24:] *= 30
    x = torch.randn(600, 256, generator=torch.Generator().manual_seed(0))
    result = solve(weight, (x.mT @ x)[None], scheme("nvfp4"))
    above, below, other = result.weight(0, slice(0, 24)), result.weight(0, slice(24, 48)), result.weight(1)
    levels = [each.two_level for each in (above, below, other)]
    assert all(level is not None for level in levels)
    assert levels[0].divisor == levels[1].divisor > levels[2].divisor
    for each, level in zip((above, below, other), levels, strict=True):
        assert torch.equal(level.codes.float() / level.divisor, each.scales)
        assert each.two_level.codes.shape == each.scales.shape


@pytest.mark.parametrize("method", ["rtn", "gptaq"])
def test_modules_that_programs_join_have_one_scale(method: str, tmp_path: Path) -> None:
    config = LLAMA | {"intermediate_size": 128}
    weights = random_weights(config, 0)
    for name in weights:
        if name.endswith(("q_proj.weight", "up_proj.weight")):
            weights[name] *= 8
    source = Checkpoint.open(write_checkpoint(tmp_path / "source", config, weights))
    text = torch.randint(3, 96, (4, 32), generator=torch.Generator().manual_seed(0))
    rules = [Rule("attention", "nvfp4", method), Rule("dense_mlp", "nvfp4", method)]
    quantize(source, rules, None, text, text[:2], tmp_path / "out", tmp_path / "work", lambda *_: None)
    made = Checkpoint.open(tmp_path / "out")
    for layer in range(2):
        for joined in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            found = [made.quantized(f"model.layers.{layer}.{name}") for name in joined]
            assert len({each.two_level.divisor.item() for each in found}) == 1
            assert len({each.scales.max().item() for each in found}) > 1


@pytest.mark.parametrize(("name", "group"), [("nvfp4", 16), ("mxfp4", 32)])
def test_inputs_that_no_group_divides_are_refused(name: str, group: int) -> None:
    with pytest.raises(InputError, match=rf"x\.weight has 72 inputs, no multiple of {group}; use fp8-channel"):
        scheme(name).check("x.weight", (8, 72))
