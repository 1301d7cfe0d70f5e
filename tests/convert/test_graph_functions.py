"""The bodies of the `llmc` functions, run by ONNX Runtime, against the torch blocks they are named after."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import CheckerPass

from llmc.convert.graph.builder import DOMAIN, OPSET
from llmc.convert.graph.grouped_topk import grouped_topk_function
from llmc.convert.graph.latent_attention import latent_attention_function
from llmc.convert.graph.linear import round_to_mxfp4_function, round_to_nvfp4_function
from llmc.convert.graph.mixture_of_experts import mixture_of_experts_function
from llmc.convert.model.grouped_topk import GroupedTopK
from llmc.convert.model.mixture_of_experts import MixtureOfExperts
from llmc.convert.quantized_weight import Activations
from llmc.convert.spec import Activation, ClampedSwiGLU, MixtureOfExpertsSpec, RouterSpec
from llmc.runtime.quiet_onnxruntime import onnxruntime as ort


def run(
    function: ir.Function, inputs: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]], **attributes: object
) -> list[torch.Tensor]:
    """One node of that function as a model with outputs of these shapes, fully checked, then run."""
    values = [value(f"x{i}", tensor) for i, tensor in enumerate(inputs)]
    attrs = ir.convenience.convert_attributes(attributes)
    node = ir.Node(DOMAIN, function.name, values, attrs, num_outputs=len(shapes))
    types = [ir.DataType.INT64, ir.DataType.FLOAT][-len(shapes) :]
    for output, dtype, shape in zip(node.outputs, types, shapes, strict=True):
        output.dtype, output.shape = dtype, ir.Shape(shape)
    graph = ir.Graph(values, node.outputs, nodes=[node], name="one", opset_imports={"": OPSET, DOMAIN: 1})
    model = ir.Model(graph, ir_version=11, functions=[function])
    CheckerPass(full_check=True)(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {f"x{i}": tensor.numpy() for i, tensor in enumerate(inputs)}
    return [torch.from_numpy(output) for output in session.run(None, feeds)]


def value(name: str, like: torch.Tensor) -> ir.Value:
    dtype = ir.DataType.INT64 if like.dtype == torch.int64 else ir.DataType.FLOAT
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(like.shape))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 5])
def test_latent_attention(tokens: int) -> None:
    heads, rank, rope, capacity = 4, 16, 8, 11
    query, cache = random(2, heads, tokens, rank + rope), random(2, 1, capacity, rank + rope, seed=1)
    visible = torch.arange(capacity) <= torch.tensor([[2], [6]])[:, None] + torch.arange(tokens)[:, None]
    mask = torch.where(visible, 0.0, -1e9)[:, None]
    function = latent_attention_function()
    shape = (2, heads, tokens, rank)
    (got,) = run(function, [query, cache, mask], [shape], num_heads=heads, kv_lora_rank=rank, scale=0.3)
    keys = cache.expand(-1, heads, -1, -1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, keys[..., :rank], mask, scale=0.3)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_inputs_are_rounded_to_fp4_as_in_torch(kind: str) -> None:
    """Of all sizes, around powers of two among them, and beyond what calibration has seen."""
    x = random(3, 64, 64) * torch.logspace(-30, 2, 64)[:, None]
    x[0, 0] = 0
    largest = torch.exp2(torch.arange(-40, 24).float()) * torch.tensor([1.0, 1.75]).repeat(32)
    x[1] *= 0.01 * largest[:, None] / x[1].abs().amax(-1, keepdim=True)
    x[1, :, ::16] = torch.stack([largest, largest.nextafter(torch.tensor(0.0)), -largest, largest / 2], -1)
    activations = Activations(kind).at(64.0)
    scale = {"scale": activations.scale} if kind == "nvfp4" else {}
    function = round_to_nvfp4_function() if kind == "nvfp4" else round_to_mxfp4_function()
    (got,) = run(function, [x], [x.shape], **scale)
    assert torch.equal(got, activations.rounded(x))


ROUTERS = {
    "DeepSeek-V3": RouterSpec(16, 4, 4, 2, "sigmoid", True, True, 2.5),
    "one group": RouterSpec(6, 2, 1, 1, "softmax", False, False, 1.0),
    "groups of two": RouterSpec(8, 2, 4, 1, "softmax", True, True, 1.0),
}


@pytest.mark.parametrize("spec", ROUTERS.values(), ids=ROUTERS)
def test_grouped_topk(spec: RouterSpec) -> None:
    block = GroupedTopK(spec, spec.num_experts).requires_grad_(False)
    block.weight.copy_(torch.eye(spec.num_experts))  # so that what goes in are the logits
    bias = 0.3 * random(spec.num_experts)
    if spec.selection_bias:
        block.e_score_correction_bias.copy_(bias)
    else:
        bias.zero_()
    logits = random(50, spec.num_experts, seed=1)
    index, weight = run(
        grouped_topk_function(spec),
        [logits, bias],
        [(50, spec.top_k)] * 2,
        top_k=spec.top_k,
        num_groups=spec.num_groups,
        top_k_groups=spec.top_k_groups,
        normalize=int(spec.normalize),
        scaling_factor=spec.scaling_factor,
        scoring=spec.scoring,
    )
    expected_index, expected_weight = block(logits)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(weight, expected_weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("activation", "bias"), [("silu", False), (ClampedSwiGLU(1.7, 0.5), True)])
def test_mixture_of_experts(activation: Activation, bias: bool) -> None:
    spec = MixtureOfExpertsSpec(ROUTERS["DeepSeek-V3"], 24, 0, activation, bias)
    block = MixtureOfExperts(spec, 32).requires_grad_(False)
    for i, parameter in enumerate(block.parameters()):
        parameter.copy_(random(*parameter.shape, seed=i) / 5)
    x = random(7, 32)
    index, weight = block.route(x)
    stacks = [
        torch.stack([getattr(expert, name).weight.T for expert in block.experts])
        for name in ("gate_proj", "up_proj", "down_proj")
    ]
    if bias:
        stacks += [
            torch.stack([getattr(expert, name).bias for expert in block.experts])
            for name in ("gate_proj", "up_proj", "down_proj")
        ]
    (got,) = run(mixture_of_experts_function(spec), [x, index, weight, *stacks], [x.shape])
    torch.testing.assert_close(got, block(x[None])[0], rtol=1e-4, atol=1e-5)
