"""Graphs of a model whose weights stay 4-bit floats, with experts and a multi-token-prediction layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from support.float4_checkpoint import compressed_tensors, packed_weights
from support.graph_comparison import WIDTHS, compare_with_torch, write_graphs
from support.graph_session import GraphSession, divergences
from support.plugin_functions import add_plugin_functions
from support.quantized_checkpoint import DEEPSEEK, DENSE, quantized_copy
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.contents import INTEGERS, Contents
from llmc.convert.engines.engine import Steps
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.plugins import Plugins
from llmc.convert.graph.build import graphs
from llmc.convert.model import CausalLM
from llmc.convert.targets import TargetResult, target

pytestmark = pytest.mark.slow
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "experts, nvfp4": (DEEPSEEK, "nvfp4"),
    "experts, mxfp4": (DEEPSEEK, "mxfp4"),
    "dense, nvfp4": (LLAMA | DENSE, "nvfp4"),
}


@pytest.fixture(scope="module", params=CASES)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    (config, scales), directory = CASES[request.param], tmp_path_factory.mktemp("float4")
    source = config | {"quantization_config": compressed_tensors(scales)}
    write_checkpoint(directory / "source", source, packed_weights(config, scales))
    checkpoint = quantized_copy(Checkpoint.open(directory / "source"), {}, directory)
    assert sum(checkpoint.kind(name) is not None for name in checkpoint.names()) >= 14
    return checkpoint


def build(checkpoint: Checkpoint, name: str, **options: Any) -> TargetResult:
    found = target(name)
    return found.build(checkpoint, found.Options(**options), checkpoint.path, lambda *_: None)


def test_portable_graph_equals_torch(kept: Checkpoint) -> None:
    compare_with_torch(kept, build(kept, "onnx"))


def test_onnxruntime_equals_torch_at_level_1(kept: Checkpoint) -> None:
    compare_with_torch(kept, build(kept, "onnxruntime", accuracy_level=1))


def test_onnxruntime_is_close_at_level_4(kept: Checkpoint) -> None:
    """Written again in 8 bits, which loses nothing: what is rounded are inputs."""
    result = build(kept, "onnxruntime", accuracy_level=4)
    assert "MatMulNBits" in result.details["ops"]["main"]
    model = onnx.load(kept.path / result.files["main"])
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    name = next(each for each in kept.names() if each.endswith("o_proj.weight"))
    codes, scales = stored[f"{name}.doubled"].astype(np.float32) - 128, stored[f"{name}.half_scales"]
    assert torch.equal(torch.from_numpy((codes * scales[..., None]).reshape(len(codes), -1)), kept.tensor(name))
    ids = torch.randint(0, 96, (4, 48), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(kept)
    logits, _ = GraphSession(kept.path / result.files["main"], batch=4).step(ids, [0] * 4)
    assert float(divergences(model.logits(model.hidden(ids)), logits).median()) < 0.003


def test_engines_decode_them_and_say_so(kept: Checkpoint) -> None:
    models = graphs(kept, ir.DataType.FLOAT, 64)
    for model in models.values():
        lower(model, kept.spec, ir.DataType.FLOAT, INTEGERS | {"float8_e4m3fn"}, WIDTHS, 1)
        held = {value.dtype for value in model.graph.initializers.values()}
        assert not held & {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1, ir.DataType.INT4}
    if kept.family.name == "llama":  # ONNX Runtime refuses what latent attention becomes
        compare_with_torch(kept, write_graphs(kept, models))
    assert Contents(kept, False, Steps(64, 2, (1, 2), 16), 1)._widened() == {"float4_e2m1fn"}


def test_plugins_multiply_by_their_codes(kept: Checkpoint) -> None:
    """All but kv_b_proj, whose notes say so."""
    models, plugins = graphs(kept, ir.DataType.FLOAT, 64), Plugins()
    for model in models.values():
        lower(model, kept.spec, ir.DataType.FLOAT, INTEGERS | {"float8_e4m3fn"}, WIDTHS, 1, plugins)
        held = {name.partition(".words")[0] for name in model.graph.initializers if name.endswith(".words")}
        assert len(held) >= 7
        plain = {name for name in model.graph.initializers if name.endswith(".plain")}
        assert all("kv_b_proj" in name for name in plain)
    contents = Contents(kept, True, Steps(64, 2, (1, 2), 16), 1)
    assert not contents._widened()
    latent = kept.family.name != "llama"
    assert any("kv_b_proj is bfloat16" in note for note in contents._plain_notes()) == latent


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4"])
def test_what_llmc_makes_is_exact_in_plugins(scheme: str, tmp_path: Path) -> None:
    source = Checkpoint.open(write_checkpoint(tmp_path / "source", LLAMA | DENSE, random_weights(LLAMA | DENSE, 0)))
    made = quantized_copy(source, {"attention": scheme, "dense_mlp": scheme}, tmp_path)
    models, plugins = graphs(made, ir.DataType.FLOAT, 64), Plugins()
    for model in models.values():
        lower(model, made.spec, ir.DataType.FLOAT, INTEGERS | {"float8_e4m3fn"}, WIDTHS, 1, plugins)
        assert sum(name.endswith(".words") for name in model.graph.initializers) == 14
        add_plugin_functions(model, made.spec, plugins)
    compare_with_torch(made, write_graphs(made, models))
