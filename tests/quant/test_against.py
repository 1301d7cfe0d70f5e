"""Two checkpoints side by side, against transformers in float64; and a comparison that is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.artifact_in_transformers import said_by_transformers
from support.layerwise_pass import Stop, random_ids, run_pass
from support.quantized_checkpoint import DENSE, quantized_checkpoint
from support.random_checkpoint import LLAMA, QWEN2, random_checkpoint, random_weights, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import MixtureOfExperts, load_layer
from llmc.errors import InputError
from llmc.quant.against import Compared, compare
from llmc.quant.assign import Rule

TEXT = random_ids(3, 24, 1)
ROOM = 1 << 30


@pytest.fixture(scope="module")
def pruned(prunable: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A DeepSeek-V3, and the same with fewer experts in int4."""
    folder = tmp_path_factory.mktemp("pruned")
    rules = [Rule("experts", "int4-g32", "rtn"), Rule("attention", "fp8-block", "rtn")]
    run_pass(prunable, folder, rules, random_ids(8, 32), TEXT, 2 / 3)
    return prunable, folder / "out"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Qwen2 whose head is its embedding."""
    folder = tmp_path_factory.mktemp("tied")
    config = QWEN2 | DENSE | {"tie_word_embeddings": True}
    quantized_checkpoint(folder, config, {"dense_mlp": "int3-g64", "attention": "int4-g32"})
    return folder / "source", folder / "artifact"


@pytest.fixture(scope="module")
def from_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Llama, and the same as GPTQModel stores it in 4 bits; written here byte by byte."""
    folder, config = tmp_path_factory.mktemp("gptq"), LLAMA | {"intermediate_size": 96}
    source = random_checkpoint(folder / "source", config)
    weights = random_weights(config)
    for name in [name for name in weights if "_proj" in name]:
        weights |= as_gptq(name.removesuffix(".weight"), weights.pop(name))
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    return source, write_checkpoint(folder / "gptq", config | {"quantization_config": quantization}, weights)


def as_gptq(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a weight [out, in]: codes [in / 8, out] in words of 32 bits, scales [groups, out], zeros less one."""
    scales = weight.unflatten(1, (-1, 32)).abs().amax(-1) / 7
    codes = (weight / scales.half().float().repeat_interleave(32, 1)).round().clamp(-8, 7).long() + 8
    shifts = 4 * torch.arange(8)
    words = (codes.T.unflatten(0, (-1, 8)) << shifts[:, None]).sum(1)
    zeros = (torch.full((scales.shape[1], len(weight) // 8, 8), 7) << shifts).sum(-1)
    return {
        f"{module}.qweight": words.to(torch.int32),
        f"{module}.qzeros": zeros.to(torch.int32),
        f"{module}.scales": scales.T.contiguous().half(),
        f"{module}.g_idx": (torch.arange(weight.shape[1]) // 32).int(),
    }


def compared(models: tuple[Path, Path], folder: Path, **options: Any) -> Compared:
    original, other = map(Checkpoint.open, models)
    return compare(original, other, {"check": TEXT}, folder, experts_within=ROOM, **options)


@pytest.mark.parametrize("name", ["pruned", "tied", "from_elsewhere"])
def test_both_say_what_they_say_in_transformers(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    models = request.getfixturevalue(name)
    p, q = (said_by_transformers(each, TEXT, tmp_path / str(i)) for i, each in enumerate(models))
    found = compared(models, tmp_path / "work").answers["check"]
    kl = (p.exp() * (p - q)).sum(-1)
    assert kl.mean() > 1e-3
    torch.testing.assert_close(found.divergence, kl, rtol=1e-3, atol=1e-6)
    following = TEXT[:, 1:, None]
    for mine, its in ((found.true, p), (found.true_quantized, q)):
        torch.testing.assert_close(mine, its.gather(-1, following)[..., 0], rtol=0, atol=1e-4)
    assert torch.equal(found.top_ids[..., 0], p.argmax(-1)) and torch.equal(found.best_quantized, q.argmax(-1))


def test_codes_of_another_tool_mean_what_it_means(from_elsewhere: tuple[Path, Path]) -> None:
    """The witness reads by our formats; this weight is decoded by the format's own rule."""
    weight = random_weights(LLAMA | {"intermediate_size": 96})["model.layers.0.mlp.up_proj.weight"]
    scales = (weight.unflatten(1, (-1, 32)).abs().amax(-1) / 7).half().float().repeat_interleave(32, 1)
    wanted = (weight / scales).round().clamp(-8, 7) * scales
    found = Checkpoint.open(from_elsewhere[1]).tensor("model.layers.0.mlp.up_proj.weight")
    torch.testing.assert_close(found, wanted)


def test_experts_are_compared_on_the_same_tokens(pruned: tuple[Path, Path], tmp_path: Path) -> None:
    found = compared(pruned, tmp_path).layers
    assert [each.layer for each in found] == [0, 1, 2] and found[0].routing is None
    routing = found[1].routing
    assert routing is not None and len(routing.removed) == 4
    mine, its = (load_layer(Checkpoint.open(path), 1).mlp for path in pruned)
    assert isinstance(mine, MixtureOfExperts) and isinstance(its, MixtureOfExperts)
    survivors = [number for number in range(12) if number not in routing.removed]
    errors = routing.expert_errors
    assert [number for number, error in enumerate(errors) if error is None] == routing.removed
    number, x = survivors[5], torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    made, wanted = its.experts[5](x), mine.experts[number](x)
    # Other tokens, the same weights: the size of the error is that of the weights.
    assert errors[number] == pytest.approx(((made - wanted).norm() / wanted.norm()).item(), rel=0.3)
    original, other = map(Checkpoint.open, pruned)
    alone = compare(original, other, {"check": TEXT}, tmp_path / "alone", experts_within=0)
    assert [each.error for each in alone.layers] == [each.error for each in found]
    assert alone.layers[1].routing is not None and alone.layers[1].routing.expert_errors == []


def test_a_model_against_itself_is_no_distance(prunable: Path, tmp_path: Path) -> None:
    found = compared((prunable, prunable), tmp_path)
    assert found.answers["check"].divergence.abs().max() == 0
    for each in found.layers:
        assert each.error == 0 and each.cosine == pytest.approx(1)
        assert each.routing is None or (each.routing.agreement, each.routing.identical) == (1, 1)
        assert each.routing is None or not any(each.routing.expert_errors)


def test_an_interrupted_comparison_goes_on(pruned: tuple[Path, Path], tmp_path: Path) -> None:
    whole, layers = compared(pruned, tmp_path / "whole"), list[int]()

    def stop(phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        if layer == 2:
            raise Stop

    def note(phase: str, done: float, total: float = 1.0, layer: int = 0, count: int = 1) -> None:
        layers.append(layer)

    with pytest.raises(Stop):
        compared(pruned, tmp_path / "work", progress=stop)
    found = compared(pruned, tmp_path / "work", progress=note)
    assert {*layers} == {2, 3} and found.layers == whole.layers
    assert torch.equal(found.answers["check"].divergence, whole.answers["check"].divergence)
    assert not [*(tmp_path / "work").glob("*.f32")]


def test_models_of_two_kinds_are_refused(tied: tuple[Path, Path], prunable: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layers, but .* has 3; give the model that it was made from"):
        compared((prunable, tied[1]), tmp_path)
