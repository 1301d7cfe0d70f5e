"""Finite weights whose activations outgrow float32: said where it happens, with the weight that is to blame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_weights, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.quant.overflow import LARGEST, OverflowInModelError, explained, refuse_overflow

IDS = torch.arange(64).reshape(2, 32)
Edit = Callable[[dict[str, torch.Tensor]], object]


def broken(directory: Path, config: dict, **factors: float) -> Checkpoint:
    """A random model some of whose weights are multiplied, by names with / for dots."""
    weights = random_weights(config)
    for name, factor in factors.items():
        weights[name.replace("/", ".")] *= factor
    return Checkpoint.open(write_checkpoint(directory / "model", config, weights))


def run(checkpoint: Checkpoint, directory: Path, method: str) -> None:
    rules = [Rule("attention", "fp8-channel", method)]
    quantize(checkpoint, rules, None, IDS, IDS, directory / "out", directory / "work", lambda *_: None)


DENSE = LLAMA | {"num_hidden_layers": 3}
CASES: dict[str, tuple[dict, dict[str, float], list[str]]] = {
    "inside an MLP": (
        DENSE,
        {"model/layers/1/mlp/up_proj/weight": 1e38},
        ["model.layers.1:", "the original model's activations over the check text", "1.mlp.up_proj.weight"],
    ),
    "squares beyond float32": (DENSE, {"model/layers/1/mlp/down_proj/weight": 1e25}, ["model.layers.1:", "down_proj"]),
    "scores": (
        DENSE,
        {"model/layers/0/self_attn/q_proj/weight": 1e25, "model/layers/0/self_attn/k_proj/weight": 1e24},
        ["model.layers.0:", "hold NaN", "0.self_attn.q_proj.weight"],
    ),
    "an expert": (
        DEEPSEEK_V3,
        {f"model/layers/2/mlp/experts/{n}/up_proj/weight": 1e38 for n in range(8)},
        ["model.layers.2:", "2.mlp.experts."],
    ),
    "the embedding": (DENSE, {"model/embed_tokens/weight": 1e25}, ["model.embed_tokens:"]),
    "the head": (DENSE, {"lm_head/weight": 1e37}, ["model.norm and lm_head:", "logits", "lm_head.weight"]),
    "the norm before a tied head": (
        DENSE | {"tie_word_embeddings": True},
        {"model/norm/weight": 1e38},
        ["model.norm and model.embed_tokens:", "model.norm.weight"],
    ),
    "logits of a million": (DENSE, {"lm_head/weight": 1e7}, ["holds the check text for impossible"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["rtn", "gptaq"])
def test_what_overflows(case: str, method: str, tmp_path: Path) -> None:
    config, factors, parts = CASES[case]
    checkpoint = broken(tmp_path, config, **factors)
    with pytest.raises(InputError) as caught:
        run(checkpoint, tmp_path, method)
    for part in [*parts, "all weights are finite", "compare it with the one it was made from"]:
        assert part in str(caught.value)
    assert "download" not in str(caught.value)


def test_finished_layers_are_kept(tmp_path: Path) -> None:
    """And the next run goes on behind them."""
    checkpoint = broken(tmp_path, DENSE, **{"model/layers/2/mlp/up_proj/weight": 1e38})
    for _ in range(2):
        with pytest.raises(InputError, match=r"model\.layers\.2: "):
            run(checkpoint, tmp_path, "rtn")
        found = sorted((tmp_path / "work").glob("layer-*.json"))
        assert [path.name for path in found] == ["layer-00000.json", "layer-00001.json"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 2 * LARGEST, -2 * LARGEST])
def test_one_number_is_enough(value: float) -> None:
    x = torch.ones(3, 4, 5)
    x[1, 2, 3] = value
    with pytest.raises(OverflowInModelError, match=r"^these "):
        refuse_overflow(x, "these")
    assert refuse_overflow(torch.tensor([1.0, -LARGEST]), "these") == LARGEST
    assert refuse_overflow(torch.empty(0, 5), "these") == 0


def test_a_quantized_model_alone(tmp_path: Path) -> None:
    """Where weights look as they should, it is the quantization."""
    error = OverflowInModelError("the quantized model's activations reach 1e+30")
    said = str(explained(error, broken(tmp_path, DENSE), ("model.layers.0",)))
    assert "quantize these modules in more bits" in said
