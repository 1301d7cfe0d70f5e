"""The same function with larger norms and smaller weights: every layout and scheme makes the same of it, or says no."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantized_checkpoint import quantized_copy
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats.gptq import GPTQ
from llmc.convert.model import CausalLM
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions, quantize
from llmc.quant.schemes import scheme

CONFIG = LLAMA | {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}
IDS = torch.randint(3, 96, (4, 32), generator=torch.Generator().manual_seed(0))
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
BEHIND_NORMS = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up"))


def rescaled(directory: Path, power: int) -> Path:
    """Weights behind norms times 2^power, norms divided by it: exact, in bfloat16."""
    weights = {name: weight.bfloat16() for name, weight in random_weights(CONFIG).items()}
    for name, weight in weights.items():
        weight *= 2.0**power if name.endswith(BEHIND_NORMS) else 2.0**-power if name.endswith(NORMS) else 1
    return write_checkpoint(directory, CONFIG, weights)


def logits(path: Path) -> torch.Tensor:
    model = CausalLM.load(Checkpoint.open(path))
    return model.logits(model.hidden(IDS))


def quantized(directory: Path, power: int, layout_name: str, name: str, method: str = "rtn") -> torch.Tensor:
    """What the artifact says, as it is read back."""
    source = Checkpoint.open(rescaled(directory / "source", power))
    rules = [Rule(role, name, method) for role in ("attention", "dense_mlp")]
    out, options = directory / "out", QuantizeOptions(layout=layout_name)
    quantize(source, rules, None, IDS, IDS[:1], out, directory / "work", lambda *_: None, options)
    return logits(out)


CASES = [
    ("compressed-tensors", name, method)
    for name in ("int2-g32", "int3-g32", "int4-g64", "int4-g32-asym", "int8-channel", "fp8-tensor-static")
    for method in ("rtn", "gptaq")
] + [
    ("compressed-tensors", "fp8-channel-dynamic", "rtn"),
    ("compressed-tensors", "fp8-block", "rtn"),
    ("native-fp8", "fp8-block", "gptaq"),
    ("gptq", "int4-g32", "gptaq"),
    ("gptq", "int4-g32-asym-actorder", "gptq"),
]


def test_rescaling_leaves_the_original_what_it_is(tmp_path: Path) -> None:
    assert torch.equal(logits(rescaled(tmp_path / "a", 0)), logits(rescaled(tmp_path / "b", -16)))


@pytest.mark.parametrize(("layout_name", "name", "method"), CASES)
@pytest.mark.parametrize("power", [-16, -6, 10])
def test_rescaling_changes_nothing_or_is_refused(
    tmp_path: Path, layout_name: str, name: str, method: str, power: int
) -> None:
    expected = quantized(tmp_path / "plain", 0, layout_name, name, method)
    directory = tmp_path / "rescaled"
    if layout_name == "gptq" and power == -16:
        with pytest.raises(InputError, match=r"q_proj: the scales .* float16 of layout gptq"):
            quantized(directory, power, layout_name, name, method)
        assert not list((directory / "work").iterdir())  # before any work
    else:
        assert torch.equal(quantized(directory, power, layout_name, name, method), expected)


@pytest.mark.parametrize("power", [0, -20])
def test_groups_that_lose_precision_are_told(tmp_path: Path, power: int) -> None:
    """A few channels that the norm makes large again are too little of a weight to refuse it."""
    weights = random_weights(CONFIG)
    for name, weight in weights.items():
        if "post_attention" in name or name.endswith(("gate_proj.weight", "up_proj.weight")):
            weight[..., :32] *= 2.0**-power if "norm" in name else 2.0**power
    source = Checkpoint.open(write_checkpoint(tmp_path / "source", CONFIG, weights))
    rules, told = [Rule("dense_mlp", "int4-g32", "rtn")], list[str]()
    out, options = tmp_path / "out", QuantizeOptions(layout="gptq")
    quantize(source, rules, None, IDS, IDS[:1], out, tmp_path / "work", lambda *_: None, options, tell=told.append)
    assert len(told) == (power < 0)
    assert not told or "256 groups of weights in 2 modules (model.layers.0.mlp.gate_proj, …)" in told[0]


def test_large_scales_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float16"):
        quantized(tmp_path, 24, "gptq", "int4-g32")


def test_codes_that_are_kept_as_stored_are_looked_at(tmp_path: Path) -> None:
    """Nothing is said of the layout they are in; what would be written in gptq is refused before any work."""
    options = QuantizeOptions(layout="gptq")
    for power, refused in ((0, False), (-16, True)):
        source = Checkpoint.open(rescaled(tmp_path / f"source{power}", power))
        stored = quantized_copy(source, {"attention": "int4-g32", "dense_mlp": "int4-g32"}, tmp_path / f"codes{power}")
        for rules in ({"dense_mlp": "int4-g32"}, {"dense_mlp": "int8-g32"}):  # attention is in no rule
            directory = tmp_path / f"{power}{rules['dense_mlp']}"
            if refused:
                with pytest.raises(InputError, match="layout gptq"):
                    quantized_copy(stored, rules, directory, options)
                assert not list((directory / "work").iterdir())
            else:
                quantized_copy(stored, rules, directory, options)


def changed(change: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)) / 8
    change(weight)
    return weight


@pytest.mark.parametrize("name", ["int2-g32", "int3-channel", "int4-g128", "int8-g32", "int4-g32-asym"])
def test_ordinary_weights_are_welcome(name: str) -> None:
    """Dead rows and empty matrices, too."""
    for change in (lambda w: None, lambda w: w[3].zero_(), lambda w: w[3:5].mul_(1e-12), lambda w: w.zero_()):
        GPTQ.require_range("m", changed(change), scheme(name).spec)


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_what_the_solver_made_is_looked_at_again(factor: float) -> None:
    weight = QuantizedWeight(torch.ones(4, 32, dtype=torch.int8), torch.full((4, 1), factor), (1, 32), "int4")
    with pytest.raises(InputError, match="m: the scales of these weights"):
        GPTQ.encode("m", weight, scheme("int4-g32").spec)


@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("method", ["rtn", "gptaq"])
def test_negative_scales_are_for_those_who_take_them(tmp_path: Path, method: str, negative: bool) -> None:
    source, options = Checkpoint.open(rescaled(tmp_path / "source", 0)), QuantizeOptions(negative_scales=negative)
    out = tmp_path / "out"
    quantize(
        source,
        [Rule("dense_mlp", "int3-g32", method)],
        None,
        IDS,
        IDS[:1],
        out,
        tmp_path / "work",
        lambda *_: None,
        options,
    )
    weight = Checkpoint.open(out).quantized("model.layers.0.mlp.up_proj")
    assert weight is not None and bool((weight.scales < 0).any()) == negative
