"""The routing kernel chooses what the graph's function chooses in ONNX Runtime, and compiles for every GPU.

It runs in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from support.interpreted_kernels import (
    GENERATIONS,
    compiled_without_spills,
    let_the_interpreter_round_to_bfloat16,
    run_all,
)
from support.interpreter_process import results_of
from support.model_lines import published_config, published_names
from support.plugin_functions import routed

from llmc.convert.engines.grouped_topk import routing_shape
from llmc.convert.families import family_of
from llmc.convert.graph.builder import DOMAIN, OPSET
from llmc.convert.graph.grouped_topk import grouped_topk_function
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.spec import MixtureOfExpertsSpec, RouterSpec
from llmc.errors import InputError
from llmc.runtime.plugins.grouped_topk import GroupedTopKPlugin
from llmc.runtime.plugins.operation import Gpu
from llmc.runtime.quiet_onnxruntime import onnxruntime as ort

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def published_routers() -> list[RouterSpec]:
    """Of all published configurations, each way of routing once."""
    found = {}
    for name in published_names():
        config = published_config(name)
        try:
            mlps = family_of(config).spec(config).mlps
        except InputError:
            continue
        found |= {mlp.router: None for mlp in mlps if isinstance(mlp, MixtureOfExpertsSpec)}
    return list(found)


MADE_UP = [
    RouterSpec(16, 4, 4, 2, "sigmoid", True, True, 2.5),
    RouterSpec(6, 2, 1, 1, "softmax", False, False, 1.0),
    RouterSpec(8, 2, 4, 1, "softmax", True, True, 1.0),
    RouterSpec(15, 5, 5, 3, "sigmoid", True, False, 0.5, "best"),
    RouterSpec(160, 6, 8, 3, "softmax", False, False, 16.0, "best"),  # DeepSeek-V2's
    RouterSpec(20, 20, 1, 1, "sigmoid", False, True, 1.0),  # all of them
    RouterSpec(12, 7, 4, 2, "softmax", False, False, 2.0),  # more than are open
]
ROUTERS = [*MADE_UP, *published_routers()]
R1 = RouterSpec(256, 8, 8, 4, "sigmoid", True, True, 2.5)


def problem(router: RouterSpec) -> list[torch.Tensor]:
    """Logits [11, E] and bias [E]: the first five tokens random, of the others many logits alike, some in all."""
    generator = torch.Generator().manual_seed(router.num_experts)
    logits = 2 * torch.randn(11, router.num_experts, generator=generator)
    logits[5:9] = (logits[5:9] / 2).round()
    logits[9:] = 0
    logits[10, 0::2] = -0.0
    bias = torch.randint(-2, 3, (router.num_experts,), generator=generator) / 8
    return [logits, bias if router.selection_bias else torch.zeros_like(bias)]


def in_kernels(router: RouterSpec, dtype: str = "fp32") -> list[torch.Tensor]:
    inputs = problem(router)
    request = KernelRequest("GroupedTopK", routing_shape(router, dtype))
    found, launched = run_all(GroupedTopKPlugin, request, inputs, [(11, router.top_k)] * 2, Gpu(86, 84))
    assert launched == ["route"]
    return found


def in_onnxruntime(router: RouterSpec) -> list[torch.Tensor]:
    """The graph's own function."""
    logits, bias = problem(router)
    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = [
        ir.Value(name=name, type=kind, shape=ir.Shape(x.shape)) for name, x in (("logits", logits), ("bias", bias))
    ]
    node = ir.Node(DOMAIN, "GroupedTopK", inputs, routed(router), num_outputs=2)
    for output, dtype in zip(node.outputs, (ir.DataType.INT64, ir.DataType.FLOAT), strict=True):
        output.type = ir.TensorType(dtype)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], name="one", opset_imports={"": OPSET, DOMAIN: 1})
    model = ir.Model(graph, ir_version=11, functions=[grouped_topk_function(router)])
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {"logits": logits.numpy(), "bias": bias.numpy()})]


results = results_of(__file__)


@pytest.mark.parametrize("number", range(len(ROUTERS)), ids=lambda number: str(ROUTERS[number])[10:])
def test_routes_as_the_graph_does(results: dict[Any, Any], number: int) -> None:
    index, weight = in_onnxruntime(ROUTERS[number])
    found_index, found_weight = results[number]
    assert torch.equal(found_index, index)
    torch.testing.assert_close(found_weight, weight, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_are_rounded_to_the_nearest(results: dict[Any, Any], dtype: str) -> None:
    assert torch.equal(results[dtype][0], results[0][0])
    assert torch.equal(results[dtype][1], results[0][1].to(TYPES[dtype]))


def test_all_ways_of_routing_are_tried() -> None:
    assert len(ROUTERS) > 20 and R1 in ROUTERS
    assert {(router.scoring, router.num_groups > 1, router.group_score) for router in ROUTERS} >= {
        ("sigmoid", True, "best two"), ("sigmoid", False, "best two"), ("softmax", False, "best two"),
        ("softmax", True, "best"),
    }  # fmt: skip


@pytest.mark.parametrize("sm", GENERATIONS)
def test_compiles_without_spills(sm: int) -> None:
    for router in (R1, replace(R1, num_experts=512, top_k=22, num_groups=1, top_k_groups=1, scoring="softmax")):
        assert len(compiled_without_spills(KernelRequest("GroupedTopK", routing_shape(router, "bf16")), sm)) == 1


if __name__ == "__main__":
    let_the_interpreter_round_to_bfloat16()
    made: dict[Any, Any] = {number: in_kernels(router) for number, router in enumerate(ROUTERS)}
    for name in ("bf16", "fp16"):
        made[name] = in_kernels(ROUTERS[0], name)
    torch.save(made, sys.argv[1])
