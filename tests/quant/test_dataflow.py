"""A layer's dataflow is written once: changed there, it changes for everybody who reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.graph_comparison import compare_with_torch, write_graphs
from support.quantized_checkpoint import DEEPSEEK, DENSE
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint

from llmc.convert import dataflow, layer_modules
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.dataflow import LayerOps, V
from llmc.convert.graph.build import graphs
from llmc.convert.model import CausalLM
from llmc.convert.targets.onnx import lower
from llmc.quant import layerwise
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.quant.prune import Pruning

IDS = torch.randint(0, 96, (16, 32), generator=torch.Generator().manual_seed(5))


def sandwiched(ops: LayerOps[V], x: V) -> V:
    """A norm behind attention and behind the MLP, too, as Gemma has them."""
    attended = ops.attention(ops.norm("input_layernorm", x))
    x = ops.add(x, ops.norm("post_attention_layernorm", attended))
    y = ops.mlp(ops.norm("pre_feedforward_layernorm", x))
    return ops.add(x, ops.norm("post_feedforward_layernorm", y))


@pytest.fixture
def other_dataflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    layer_modules._modules.cache_clear()
    monkeypatch.setattr(dataflow, "decoder_layer", sandwiched)
    monkeypatch.setattr(layerwise, "calibration_dtype", lambda _: torch.float32)  # also where bfloat16 is faster
    yield
    layer_modules._modules.cache_clear()


MODELS = {
    "llama": (LLAMA | DENSE, {"dense_mlp": "int4-g32", "attention": "int8-g32"}, None),
    "deepseek": (
        DEEPSEEK | {"n_group": 2, "topk_group": 2},
        {"experts": "int4-g32", "shared_experts": "int8-g32", "mtp": "int4-g32", "kv_b_proj": "int8-g32"},
        Pruning(0.75),
    ),
}


@pytest.mark.usefixtures("other_dataflow")
@pytest.mark.parametrize("name", MODELS)
def test_two_norms_more(name: str, tmp_path: Path) -> None:
    config, rules, pruning = MODELS[name]
    weights = random_weights(config)
    assert sum("post_feedforward_layernorm" in name for name in weights) == len(weights_of_layers(config))
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

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer.get_submodule(name)(x)
        return y

    y = x + norm("post_attention_layernorm", layer.self_attn(norm("input_layernorm", x), at))
    y = y + norm("post_feedforward_layernorm", layer.mlp(norm("pre_feedforward_layernorm", y)))
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


def weights_of_layers(config: dict[str, Any]) -> range:
    return range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0))


def test_the_sequence_of_norms_stands_in_one_file() -> None:
    rooms = [Path(__file__).parents[2] / room for room in ("convert", "quant")]
    found = [path for room in rooms for path in room.rglob("*.py") if "post_attention_layernorm" in path.read_text()]
    assert [path.name for path in found] == ["dataflow.py"]
