"""gpt-oss as targets lower it, against the torch blocks: sinks, windows shorter than the text, experts with biases."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from support.gpt_oss import gpt_oss_checkpoint, in_mxfp4
from support.graph_comparison import WIDTHS, compare_narrow_steps, compare_with_torch, write_graphs
from support.graph_session import GraphSession, divergences
from support.plugin_functions import add_plugin_functions
from support.quantized_checkpoint import quantized_copy

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.plugins import Plugins
from llmc.convert.graph.build import graphs
from llmc.convert.model import CausalLM
from llmc.convert.targets import onnx, onnxruntime
from llmc.convert.targets.onnxruntime import OnnxRuntimeOptions

SCHEMES: dict[str, dict[str, str]] = {
    "plain": {},
    "plain experts": {"attention": "int4-g32"},
    "int4": {"experts": "int4-g32", "attention": "int4-g32"},
    "int4, zero points": {"experts": "int4-g32-asym"},
    "int8": {"experts": "int8-g64"},
    "fp8": {"experts": "fp8-block"},
    "mxfp4": {},
    "mxfp4, one by one": {"attention": "int4-g32"},
}


@pytest.fixture(scope="module", params=SCHEMES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("gpt-oss")
    sizes = {"hidden_size": 128, "intermediate_size": 64, "sliding_window": 8}
    path, schemes = gpt_oss_checkpoint(folder / "source", torch.bfloat16, **sizes), SCHEMES[request.param]
    source = Checkpoint.open(in_mxfp4(path, folder / "published") if "mxfp4" in request.param else path)
    return quantized_copy(source, schemes, folder) if schemes else source


def test_onnxruntime(checkpoint: Checkpoint) -> None:
    result = onnxruntime.TARGET.build(
        checkpoint, OnnxRuntimeOptions(accuracy_level=1), checkpoint.path, lambda *_: None
    )
    compare_with_torch(checkpoint, result)
    nodes = [*ir.load(checkpoint.path / "model.onnx").graph]
    attention = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    assert [node.attributes["local_window_size"].as_int() for node in attention] == [8, -1, 8]
    assert all(node.inputs[11] is not None for node in attention)  # head_sink
    experts = [node for node in nodes if node.op_type in ("MoE", "QMoE")]
    assert len(experts) == 3
    for node in experts:
        names = ("activation_alpha", "activation_beta", "swiglu_limit")
        assert [round(node.attributes[name].as_float(), 3) for name in names] == [1.702, 1.0, 1.0]


@pytest.mark.parametrize("scheme", ["int4-g32", "int8-g32"])
def test_rounded_inputs_and_odd_numbers_of_groups(scheme: str, tmp_path: Path) -> None:
    """Of 2,880 channels, too, no power of two is a whole part beyond 64."""
    sizes = {"hidden_size": 96, "intermediate_size": 160, "sliding_window": 8}
    source = Checkpoint.open(gpt_oss_checkpoint(tmp_path / "source", torch.bfloat16, **sizes))
    checkpoint = quantized_copy(source, {"experts": scheme}, tmp_path)
    result = onnxruntime.TARGET.build(checkpoint, OnnxRuntimeOptions(), checkpoint.path, lambda *_: None)
    model, ids = CausalLM.load(checkpoint), torch.arange(40)[None] * 7 % 96
    logits, _ = GraphSession(checkpoint.path / result.files["main"], batch=1).step(ids, [0])
    far = divergences(model.logits(model.hidden(ids)), logits)
    assert 1e-9 < far.mean() < 1e-2


def test_onnx(checkpoint: Checkpoint) -> None:
    result = onnx.TARGET.build(checkpoint, onnx.TARGET.Options(), checkpoint.path, lambda *_: None)
    compare_with_torch(checkpoint, result)


@pytest.mark.parametrize("plugins", [True, False])
def test_tensorrt(checkpoint: Checkpoint, plugins: bool) -> None:
    """The lowered graph, what plugins mean spelled out."""
    models, used = graphs(checkpoint, ir.DataType.FLOAT, 64), Plugins() if plugins else None
    (model,) = models.values()
    code_types = {"int4", "int8", "float8_e4m3fn"}
    lower(model, checkpoint.spec, ir.DataType.FLOAT, code_types, WIDTHS, 2, used, windowed=True)
    if used is not None:
        assert used
        add_plugin_functions(model, checkpoint.spec, used)
    result = write_graphs(checkpoint, models)
    compare_with_torch(checkpoint, result)
    compare_narrow_steps(checkpoint, result)
