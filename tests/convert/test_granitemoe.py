"""Granite with experts: a stack of them on disk, and a router whose softmax is over those it chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.graph_comparison import compare_with_torch
from support.graph_session import divergences
from support.model_lines import published_config
from support.small_config import small_config
from support.small_model import save, witness
from transformers import AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.model import CausalLM
from llmc.convert.safetensors_file import read_header
from llmc.convert.spec import MixtureOfExpertsSpec
from llmc.convert.targets import target
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.quant.prune import Pruning

RELEASED = published_config("ibm-granite--granite-3.1-1b-a400m-instruct")
CONFIG = small_config(RELEASED)
IDS = torch.randint(3, 96, (8, 32), generator=torch.Generator().manual_seed(2))
MOE = "model.layers.0.block_sparse_moe."


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(save(witness(CONFIG), CONFIG, tmp_path_factory.mktemp("granite")))


def quantized(source: Checkpoint, folder: Path, rules: list[Rule], pruning: Pruning | None = None) -> Checkpoint:
    quantize(source, rules, pruning, IDS, IDS, folder / "artifact", folder / "work", lambda *_: None)
    return Checkpoint.open(folder / "artifact")


def stored(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    tensors = [item for shard in checkpoint.shards for item in read_header(shard).items()]
    return {name.removeprefix(MOE): tensor.shape for name, tensor in tensors if name.startswith(MOE)}


def test_the_released_model() -> None:
    spec = family_of(RELEASED).spec(RELEASED)
    mlp = spec.mlps[0]
    assert isinstance(mlp, MixtureOfExpertsSpec)
    assert (mlp.router.num_experts, mlp.router.top_k, mlp.router.scoring, mlp.router.normalize) == (
        *(32, 8, "softmax", True),
    )
    assert (spec.embedding_scale, spec.logits_scale, spec.wiring.residual_scale) == (12.0, 1 / 6, 0.22)
    assert spec.attentions[0].softmax_scale == 0.015625


def test_pruned_stacks_stay_stacks_and_load_in_transformers(source: Checkpoint, tmp_path: Path) -> None:
    made = quantized(source, tmp_path, [Rule("attention", "fp8-channel", "rtn")], Pruning(0.75))
    hidden, size = made.spec.hidden_size, CONFIG["intermediate_size"]
    assert stored(made) == {
        "input_linear.weight": (6, 2 * size, hidden),
        "output_linear.weight": (6, hidden, size),
        "router.layer.weight": (6, hidden),
    }
    assert json.loads((made.path / "config.json").read_text(encoding="utf-8"))["num_local_experts"] == 6
    theirs = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    with torch.no_grad():
        theirs(IDS)  # decompresses
        for parameter in theirs.parameters():
            parameter.data = parameter.data.float()
        said = theirs(IDS).logits
    model = CausalLM.load(made)
    assert divergences(said, model.logits(model.hidden(IDS))).max() < 1e-5


def test_quantized_experts(source: Checkpoint, tmp_path: Path) -> None:
    """One by one, since no format has stacks of them; and in ONNX Runtime."""
    made = quantized(source, tmp_path, [Rule("experts", "int4-g32", "rtn"), Rule("attention", "int4-g32", "rtn")])
    assert {"experts.0.gate_proj.weight_packed", "experts.7.down_proj.weight_scale", "router.layer.weight"} < {
        *stored(made)
    }
    backend = target("onnxruntime")
    options = backend.Options(accuracy_level=1)
    compare_with_torch(made, backend.build(made, options, made.path, lambda *_: None))
