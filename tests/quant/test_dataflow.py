"""A layer's dataflow is written once: changed there, it changes for everybody who reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.graph_comparison import compare_with_torch, write_graphs
from support.quantized_checkpoint import DEEPSEEK, DENSE
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint
from support.source_files import sources

from llmc.convert import dataflow, layer_modules
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.dataflow import LayerOps, V
from llmc.convert.graph.build import graphs
from llmc.convert.model import CausalLM, DecoderLayer
from llmc.convert.targets.onnx import lower
from llmc.quant import layerwise
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.quant.prune import Pruning

IDS = torch.randint(0, 96, (16, 32), generator=torch.Generator().manual_seed(5))


def sandwiched(ops: LayerOps[V], x: V, *_: object) -> V:
    """A norm behind attention and behind the MLP, too, as Gemma has them."""
    attended = ops.attention(ops.norm("input_layernorm", x))
    x = ops.add(x, ops.norm("post_attention_layernorm", attended))
    y = ops.mlp(ops.norm("pre_feedforward_layernorm", x))
    return ops.add(x, ops.norm("post_feedforward_layernorm", y))


def parallel(ops: LayerOps[V], x: V, *_: object) -> V:
    """Attention and MLP read the same, as in Phi-2."""
    normed = ops.norm("input_layernorm", x)
    return ops.add(ops.add(x, ops.mlp(normed)), ops.attention(normed))


def norm(layer: DecoderLayer, name: str, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = layer.get_submodule(name)(x)
    return y


def sandwiched_by_hand(layer: DecoderLayer, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    attended = layer.self_attn(norm(layer, "input_layernorm", x), at)
    x = x + norm(layer, "post_attention_layernorm", attended)
    y = layer.mlp(norm(layer, "pre_feedforward_layernorm", x))
    return x + norm(layer, "post_feedforward_layernorm", y)


def parallel_by_hand(layer: DecoderLayer, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    normed = norm(layer, "input_layernorm", x)
    return x + layer.mlp(normed) + layer.self_attn(normed, at)


Flows = dict[str, tuple[Any, Callable[[DecoderLayer, torch.Tensor, torch.Tensor], torch.Tensor]]]
FLOWS: Flows = {"sandwiched": (sandwiched, sandwiched_by_hand), "parallel": (parallel, parallel_by_hand)}
MODELS = {
    "llama": (LLAMA | DENSE, {"dense_mlp": "int4-g32", "attention": "int8-g32"}, None),
    "deepseek": (
        DEEPSEEK | {"n_group": 2, "topk_group": 2},
        {"experts": "int4-g32", "shared_experts": "int8-g32", "mtp": "int4-g32", "kv_b_proj": "int8-g32"},
        Pruning(0.75),
    ),
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", MODELS)
def test_one_change(flow: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, by_hand = FLOWS[flow]
    monkeypatch.setattr(layer_modules, "_modules", layer_modules._modules.__wrapped__)  # what it remembers is stale
    monkeypatch.setattr(dataflow, "decoder_layer", written)
    monkeypatch.setattr(layerwise, "calibration_dtype", lambda _: torch.float32)  # also where bfloat16 is faster
    config, rules, pruning = MODELS[name]
    weights = random_weights(config)
    assert ("model.layers.0.post_attention_layernorm.weight" in weights) == (flow == "sandwiched")
    source = Checkpoint.open(write_checkpoint(tmp_path / "source", config, weights))
    quantize(
        source,
        [Rule(role, scheme) for role, scheme in rules.items()],
        pruning,
        IDS,
        IDS[:2],
        tmp_path / "artifact",
        tmp_path / "work",
        lambda *_: None,
    )
    checkpoint = Checkpoint.open(tmp_path / "artifact")
    model = CausalLM.load(checkpoint)

    # Torch computes what the dataflow says, by hand:
    layer, x = model.layers[1], model.embed(IDS)
    at = torch.arange(IDS.shape[1]).expand(IDS.shape)
    x = model.layers[0](x, at)
    y = by_hand(layer, x, at)
    torch.testing.assert_close(layer(x, at), y)

    # calibration, through its files on disk, went the way of the written model,
    for index in range(1, checkpoint.spec.num_layers):
        file = tmp_path / "work" / f"calibration-{index:05d}.f32"
        if file.exists():  # what the last layers left
            seen = torch.from_numpy(np.fromfile(file, np.float32)).view(y.shape)
            expected = model.embed(IDS)
            for each in model.layers[:index]:
                expected = each(expected, at)
            assert (seen - expected).norm() < 1e-4 * expected.norm()
    assert (tmp_path / "work" / f"calibration-{checkpoint.spec.num_layers - 1:05d}.f32").exists()
    assert not list((tmp_path / "work").glob("*-shares-*"))

    # and so do the graphs, that of the MTP layer included.
    models = graphs(checkpoint)
    for graph in models.values():
        lower(graph)
    compare_with_torch(checkpoint, write_graphs(checkpoint, models))


def test_the_sequence_of_norms_stands_in_one_file() -> None:
    found = [path for path in sources("convert", "quant") if "post_attention_layernorm" in path.read_text()]
    found = [path for path in found if path.parent.name != "gguf"]  # llama.cpp's names for all of them
    assert [path.name for path in found] == ["dataflow.py"]
