"""The intermediate graph: its inputs and outputs, its laziness, and what its weights say about themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.quantized_checkpoint import CASES, quantized_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.build import graphs, main_graph
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.safetensors_file import StoredTensor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return quantized_checkpoint(tmp_path_factory.mktemp("graph"), *CASES[request.param])


def shapes(values: list[ir.Value]) -> dict[str, list[int | str | None]]:
    return {str(v.name): [d if isinstance(d, int) else d.value for d in v.shape or ()] for v in values}


def test_inputs_and_outputs(tmp_path: Path) -> None:
    models = graphs(quantized_checkpoint(tmp_path, *CASES["deepseek"]))
    common = {
        "input_ids": ["batch", "sequence"],
        "position_ids": ["batch", "sequence"],
        "cache_position": ["batch"],
        "logits_index": ["batch", "num_logits"],
    }
    cache = ["batch", 1, "capacity", 80]
    outputs = {"logits": ["batch", "num_logits", 96], "hidden": ["batch", "sequence", 128]}
    main, mtp = models["main"].graph, models["mtp"].graph
    assert shapes(main.inputs) == common | {f"past.{layer}.latent": cache for layer in range(3)}
    assert shapes(main.outputs) == outputs | {f"present.{layer}.latent": cache for layer in range(3)}
    state = {"previous_hidden": ["batch", "sequence", 128]}
    assert shapes(mtp.inputs) == common | state | {"past.3.latent": cache}
    assert shapes(mtp.outputs) == outputs | {"present.3.latent": cache}


def test_dense_inputs_and_outputs(tmp_path: Path) -> None:
    models = graphs(quantized_checkpoint(tmp_path, *CASES["llama"]))
    assert models.keys() == {"main"}
    assert shapes(models["main"].graph.inputs)["past.1.value"] == ["batch", 2, "capacity", 16]
    assert "hidden" not in shapes(models["main"].graph.outputs)


def test_no_float_weight_is_read(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building looks at headers; the graph of a model that is larger than memory fits into it."""
    read = StoredTensor.read

    def quantized_only(self: StoredTensor) -> torch.Tensor:
        assert self.dtype not in ("BF16", "F32") or self.name.endswith("_scale"), self.name
        return read(self)

    monkeypatch.setattr(StoredTensor, "read", quantized_only)
    graphs(checkpoint)


def test_codes_times_scales_are_the_weight(checkpoint: Checkpoint) -> None:
    """In every layout: what a lowering takes apart is, put together, what the graph says."""
    model = main_graph(checkpoint)
    weights = [weight for _, weight in Rewriter(model).weights()]
    assert {name for weight in weights for name in weight.names} == {
        name
        for name in checkpoint.names()
        if not name.startswith(f"model.layers.{checkpoint.spec.num_layers}.") and not name.endswith("_scale")
    }
    for weight in weights:
        assert weight.numpy().shape == weight.shape.numpy()
        if weight.code_type is not None:
            axis, group = weight.layout.input_axis, weight.block[1]
            scales = np.repeat(weight.scales().numpy(), group, axis).take(range(weight.shape[axis]), axis)
            steps = weight.codes().numpy().astype(np.float32)
            if weight.has_zeros:
                zeros = weight.zeros().numpy().astype(np.float32)
                steps -= np.repeat(zeros, group, axis).take(range(weight.shape[axis]), axis)
            product = steps * scales
            np.testing.assert_array_equal(product, weight.numpy(), err_msg=str(weight.name))


def test_streamed_bytes_are_the_tensor(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for _, weight in Rewriter(main_graph(checkpoint)).weights():
        for tensor in (weight, *((weight.codes(), weight.scales()) if weight.code_type else ())):
            with (tmp_path / "bytes").open("wb") as file:
                tensor.tofile(file)
            assert (tmp_path / "bytes").read_bytes() == tensor.tobytes()
            assert tensor.nbytes == len(tensor.tobytes())


def test_bfloat16_graph_passes_the_checker(tmp_path: Path) -> None:
    """The form TensorRT starts from: bfloat16 throughout, static capacity."""
    for name in ("deepseek", "qwen2, tied"):
        model = main_graph(quantized_checkpoint(tmp_path / name, *CASES[name]), ir.DataType.BFLOAT16, 32)
        ir.passes.common.CheckerPass(full_check=True)(model)
        assert all(weight.dtype == ir.DataType.BFLOAT16 for weight in linear_weights(model))
        assert {value.dtype for value in model.graph.inputs} == {ir.DataType.INT64, ir.DataType.BFLOAT16}


def linear_weights(model: ir.Model) -> list[WeightTensor]:
    """All but the router's, which stay float32."""
    return [weight for _, weight in Rewriter(model).weights() if ".mlp.gate." not in weight.names[0]]
