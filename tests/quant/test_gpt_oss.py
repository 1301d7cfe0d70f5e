"""gpt-oss on its way through the quantizer: what stays as it is keeps its form, the rest is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.gpt_oss import gpt_oss_checkpoint, in_mxfp4
from transformers import AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import families
from llmc.convert.formats import layout
from llmc.convert.model import CausalLM
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions, quantize
from llmc.quant.prune import Pruning
from llmc.quant.schemes import scheme

IDS = torch.randint(0, 96, (16, 32), generator=torch.Generator().manual_seed(5))
EXPERTS = "model.layers.1.mlp.experts"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt-oss") / "plain"
    return gpt_oss_checkpoint(folder, torch.bfloat16, hidden_size=128, intermediate_size=64)


@pytest.fixture(scope="module")
def published(plain: Path) -> Path:
    return in_mxfp4(plain, plain.parent / "published")


def written(
    source: Path, folder: Path, rules: list[Rule], pruning: Pruning | None = None, layout: str = "compressed-tensors"
) -> Checkpoint:
    options = QuantizeOptions(layout=layout)
    quantize(
        Checkpoint.open(source), rules, pruning, IDS, IDS[:2], folder / "out", folder / "work", lambda *_: None, options
    )
    return Checkpoint.open(folder / "out")


def log_probabilities(checkpoint: Checkpoint) -> torch.Tensor:
    model = CausalLM.load(checkpoint)
    return model.logits(model.hidden(IDS[:2])).log_softmax(-1)


def in_transformers(checkpoint: Checkpoint) -> torch.Tensor:
    loaded: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32, output_loading_info=True)
    model, found = loaded
    assert not found["missing_keys"] and not found["unexpected_keys"]
    with torch.no_grad():
        return torch.as_tensor(model(IDS[:2]).logits).log_softmax(-1)


def stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor for file in checkpoint.shards for name, tensor in load_file(file).items()}


def test_mxfp4_is_what_transformers_makes_of_it(published: Path) -> None:
    checkpoint = Checkpoint.open(published)
    kind = checkpoint.kind(f"{EXPERTS}.3.up_proj.weight")
    assert kind is not None and (kind.code_type, kind.block) == ("float4_e2m1fn", (1, 32))
    assert (in_transformers(checkpoint) - log_probabilities(checkpoint)).abs().max() < 1e-4


@pytest.mark.parametrize("keep", [1.0, 0.75])
def test_plain_experts_beside_quantized_attention(plain: Path, tmp_path: Path, keep: float) -> None:
    pruning = Pruning(keep) if keep < 1 else None
    artifact = written(plain, tmp_path, [Rule("attention", "int4-g32")], pruning)
    names = stored(artifact)
    assert names[f"{EXPERTS}.gate_up_proj"].shape == (8 * keep, 128, 128)
    assert names[f"{EXPERTS}.down_proj_bias"].shape == (8 * keep, 128)
    assert names["model.layers.1.mlp.router.bias"].shape == (8 * keep,)
    assert names["model.layers.1.self_attn.sinks"].shape == (8,)
    assert (in_transformers(artifact) - log_probabilities(artifact)).abs().max() < 1e-4


@pytest.mark.parametrize("keep", [1.0, 0.75])
def test_mxfp4_stays_in_stacks_in_its_own_layout(published: Path, tmp_path: Path, keep: float) -> None:
    artifact = written(published, tmp_path, [], Pruning(keep) if keep < 1 else None, layout="mxfp4")
    before, after = load_file(published / "model.safetensors"), stored(artifact)
    assert before.keys() == after.keys()
    if keep == 1:
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert artifact.config["quantization_config"]["quant_method"] == "mxfp4"
    assert (in_transformers(artifact) - log_probabilities(artifact)).abs().max() < 1e-4


def test_mxfp4_is_made_in_the_layout_it_is_published_in(plain: Path, tmp_path: Path) -> None:
    artifact = written(plain, tmp_path, [Rule("experts", "mxfp4")], layout="mxfp4")
    assert artifact.kind(f"{EXPERTS}.5.gate_proj.weight") == scheme("mxfp4").spec
    assert f"{EXPERTS}.gate_up_proj_blocks" in stored(artifact)
    assert (in_transformers(artifact) - log_probabilities(artifact)).abs().max() < 1e-4


@pytest.mark.parametrize("spelling", ["plain", "published"])
def test_int4_experts_are_stored_one_by_one(spelling: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = Checkpoint.open(request.getfixturevalue(spelling))
    artifact = written(source.path, tmp_path, [Rule("experts", "int4-g32")], Pruning(0.75))
    names = stored(artifact)
    assert {f"{EXPERTS}.5.gate_proj.weight_packed", f"{EXPERTS}.5.gate_proj.bias"} <= names.keys()
    assert f"{EXPERTS}.6.gate_proj.bias" not in names and f"{EXPERTS}.gate_up_proj_bias" not in names
    kept = json.loads((tmp_path / "out/config.json").read_text())["num_local_experts"]
    assert (kept, artifact.kind(f"{EXPERTS}.5.gate_proj.weight")) == (6, scheme("int4-g32").spec)
    assert log_probabilities(artifact).isfinite().all()
    # transformers would go on with experts of random numbers: we say so.
    loaded: Any = AutoModelForCausalLM.from_pretrained(artifact.path, output_loading_info=True)
    _, found = loaded
    assert f"{EXPERTS}.down_proj" in found["missing_keys"]
    assert "as plain stacks only" in obstacle("compressed-tensors", "int4-g32")


def test_int8_stays_close(plain: Path, tmp_path: Path) -> None:
    expected = log_probabilities(Checkpoint.open(plain))
    found = log_probabilities(written(plain, tmp_path, [Rule("experts", "int8-g32"), Rule("attention", "int8-g32")]))
    assert torch.nn.functional.kl_div(found, expected, reduction="batchmean", log_target=True) / 32 < 1e-3


def test_mxfp4_beside_quantized_attention_is_kept_bit_for_bit(published: Path, tmp_path: Path) -> None:
    artifact, source = written(published, tmp_path, [Rule("attention", "int4-g32")]), Checkpoint.open(published)
    for name in (f"{EXPERTS}.3.up_proj.weight", f"{EXPERTS}.7.down_proj.weight", f"{EXPERTS}.0.gate_proj.bias"):
        assert torch.equal(artifact.tensor(name), source.tensor(name))
    assert artifact.kind(f"{EXPERTS}.3.up_proj.weight") == source.kind(f"{EXPERTS}.3.up_proj.weight")


def obstacle(layout_name: str, experts: str) -> str:
    specs = {"experts": [scheme(experts).spec]}
    return families.get("gpt_oss").obstacle(layout(layout_name).one_by_one(specs))


def test_what_transformers_loads() -> None:
    assert not obstacle("mxfp4", "mxfp4")
    assert obstacle("compressed-tensors", "mxfp4") and obstacle("native-fp8", "fp8-block")
    specs = {"attention": [scheme("int4-g32").spec], "experts": []}
    assert not families.get("gpt_oss").obstacle(layout("compressed-tensors").one_by_one(specs))
