"""Layers of one model that differ: in heads, in how they rotate, in what attention they have."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.graph_comparison import compare_with_torch, write_graphs
from support.quantized_checkpoint import DEEPSEEK, DENSE
from support.random_checkpoint import LLAMA, random_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import families
from llmc.convert.families.deepseek_v3 import DeepseekV3
from llmc.convert.families.llama import Llama
from llmc.convert.graph.build import graphs
from llmc.convert.model import CausalLM
from llmc.convert.spec import GroupedQueryAttentionSpec, ModelSpec, RopeSpec
from llmc.convert.targets import onnx, onnxruntime
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize

IDS = torch.randint(0, 96, (8, 32), generator=torch.Generator().manual_seed(5))


class Alternating(Llama):
    """Every other layer has more heads for keys, and turns faster."""

    name, architectures = "alternating", ("AlternatingForCausalLM",)

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        spec = super().spec(config)
        first = spec.attentions[0]
        assert isinstance(first, GroupedQueryAttentionSpec)
        faster = replace(first.rope, inverse_frequencies=tuple(3 * f for f in first.rope.inverse_frequencies))
        other = replace(first, num_kv_heads=4, rope=faster)
        return replace(spec, attentions=(first, other) * (spec.num_layers // 2))


class Hybrid(DeepseekV3):
    """Its first layer has no latent."""

    name, architectures = "hybrid", ("HybridForCausalLM",)

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        spec = super().spec(config)
        frequencies = tuple(10000.0 ** (-i / 16) for i in range(16))
        rope = RopeSpec(32, 10000.0, False, frequencies)
        grouped = GroupedQueryAttentionSpec(4, 2, 32, True, False, 32**-0.5, rope)
        return replace(spec, attentions=(grouped, *spec.attentions[1:]))


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    "alternating": (Alternating(), LLAMA | DENSE, {"attention": "int4-g32", "dense_mlp": "int8-g32"}),
    "hybrid": (Hybrid(), DEEPSEEK, {"attention": "int4-g32", "experts": "int4-g32"}),
}


@pytest.fixture(params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoint]:
    family, config, rules = CASES[request.param]
    monkeypatch.setitem(families.all, family.name, family)
    own = {"architectures": [*family.architectures], "model_type": family.name}
    source = Checkpoint.open(random_checkpoint(tmp_path / "source", config, **own))
    quantize(
        source,
        [Rule(role, scheme) for role, scheme in rules.items()],
        None,
        IDS,
        IDS[:2],
        tmp_path / "artifact",
        tmp_path / "work",
        lambda *_: None,
    )
    yield Checkpoint.open(tmp_path / "artifact")


def test_with_a_cache(checkpoint: Checkpoint) -> None:
    model = CausalLM.load(checkpoint)
    caches, whole = model.new_cache(8, 32), model.hidden(IDS)
    parts = [model.hidden(IDS[:, part], caches) for part in (slice(0, 20), slice(20, 21), slice(21, 32))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_graphs(checkpoint: Checkpoint) -> None:
    """ONNX Runtime's kernels, and standard operators."""
    compare_with_torch(
        checkpoint,
        onnxruntime.TARGET.build(
            checkpoint, onnxruntime.OnnxRuntimeOptions(accuracy_level=1), checkpoint.path, lambda *_: None
        ),
    )
    models = graphs(checkpoint)
    for model in models.values():
        onnx.lower(model)
    compare_with_torch(checkpoint, write_graphs(checkpoint, models))
