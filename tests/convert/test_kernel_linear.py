"""Kernels of a product with codes agree with float64, and compile for every generation of GPU; an engine holds them.

They run in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from support.interpreted_kernels import (
    GENERATIONS,
    InterpretedKernels,
    assert_close_in_all_rows,
    compiled_without_spills,
    let_the_interpreter_multiply_bfloat16,
    let_the_interpreter_round_to_bfloat16,
    run,
)
from support.interpreter_process import results_of
from support.plugin_functions import linear
from support.stored_weights import stored

from llmc.convert.engines.compiler import compile_engine
from llmc.convert.kernels.kernel_sets import KernelRequest, kernel_sets
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins.linear import MOST_MULTIPROCESSORS, LinearLaunch, LinearPlan, LinearPlugin, LinearShape
from llmc.runtime.plugins.mixture_of_experts import HEIGHTS, ExpertWeights
from llmc.runtime.plugins.operation import Gpu
from llmc.runtime.quiet_onnxruntime import onnxruntime as ort
from llmc.tensorrt_package import TENSORRT_RTX

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {BF16: "bf16", FP16: "fp16"}
LARGEST_ERROR = {
    BF16: 0.005,
    FP16: 0.0006,
}  # of the whole, relative: outputs are rounded, for many rows weights as well


class Case(NamedTuple):
    form: str  # as `support.stored_weights` knows it
    rows: int
    inputs: int
    outputs: int
    dtype: torch.dtype = BF16
    multiprocessors: int = 1
    bias: bool = False
    kernels: tuple[str, ...] = ("product_8",)


IN_PORTIONS, FEW_ROWS, MANY_ROWS = ("portions_8", "add"), ("product_16",), ("product_64",)
HELD = Case("fp8-block", 18, 1152, 200, FP16, 24, True, ("portions_16", "add"))
CASES = [
    Case("int4-128", 1, 256, 128),
    Case("int4-32", 9, 160, 72, FP16, bias=True, kernels=FEW_ROWS),
    Case("int4-64", 17, 200, 130, kernels=FEW_ROWS),
    Case("int4-128", 2, 1536, 40, BF16, 16, True, IN_PORTIONS),
    Case("int4-256", 1, 2048, 64, FP16, 16, False, IN_PORTIONS),
    Case("int4-channel", 3, 1400, 24, FP16, 30, False, IN_PORTIONS),
    Case("int4-128", 33, 384, 72, kernels=MANY_ROWS),
    Case("fp4-16", 1, 256, 136),
    Case("fp4-32", 18, 1152, 72, FP16, 24, True, ("portions_16", "add")),
    Case("fp4-16", 33, 160, 72, FP16, kernels=MANY_ROWS),
    Case("fp8-block", 1, 256, 136, FP16),
    Case("fp8-block", 32, 200, 264, kernels=FEW_ROWS),
    HELD,
    Case("fp8-channel", 1, 1024, 32, BF16, 100, False, IN_PORTIONS),
    Case("fp8-block", 65, 264, 136, bias=True, kernels=MANY_ROWS),
    Case("fp8-tensor", 4, 72, 40, FP16),
    Case("fp8-192", 5, 384, 72),  # groups that are no part of a step of 128 inputs
    Case("fp8-64", 5, 256, 72),
]
INT4, FP8 = ExpertWeights("int4", 128, 1, "bf16"), ExpertWeights("fp8", 128, 128, "fp32")
O_PROJ = LinearShape(16384, 7168, "bf16", FP8)  # DeepSeek-R1's
FP4 = ExpertWeights("fp4", 16, 1, "bf16")
COMPILED = [(LinearShape(7168, 1536, "bf16", INT4), sm) for sm in GENERATIONS]
COMPILED += [(LinearShape(7168, 1536, "bf16", FP4), sm) for sm in (86, 120)]
COMPILED += [(O_PROJ, sm) for sm in GENERATIONS] + [(LinearShape(2880, 4096, "fp16", INT4, True), 86)]


def problem(case: Case) -> tuple[KernelRequest, list[torch.Tensor], torch.Tensor]:
    """The operation's inputs, and its output in float64."""
    from llmc.convert.kernels import expert_weights

    generator = torch.Generator().manual_seed(3)
    weight = stored(case.form, case.outputs, case.inputs, generator)
    like = expert_weights.stored_as(weight.kind, case.inputs, weight.scales.dtype)
    assert like is not None
    x = torch.randn(case.rows, case.inputs, generator=generator).to(case.dtype)
    given = [x, expert_weights.words(weight, like)[None], expert_weights.scales(weight, like)[None]]
    want = x.double() @ weight.dequantize(torch.float64).mT
    if case.bias:
        given.append(torch.randn(case.outputs, generator=generator).to(case.dtype))
        want += given[-1].double()
    shape = LinearShape(case.inputs, case.outputs, NAMES[case.dtype], like, case.bias)
    return KernelRequest("Linear", shape), given, want


def in_kernels(case: Case) -> tuple[torch.Tensor, list[str]]:
    wanted, inputs, want = problem(case)
    return run(LinearPlugin, wanted, inputs, want.shape, Gpu(86, case.multiprocessors))


results = results_of(__file__)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:4])))
def test_agrees_with_float64(results: dict[Any, Any], case: Case) -> None:
    _, _, want = problem(case)
    found, launched = results[tuple(case)]
    assert tuple(launched) == case.kernels
    assert found.dtype == case.dtype
    assert_close_in_all_rows(found, want, LARGEST_ERROR[case.dtype])


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.rows < 33], ids=lambda case: "-".join(map(str, case[:4]))
)
def test_its_meaning_in_standard_operators(case: Case) -> None:
    """Which stands for it where graphs are compared with torch."""
    wanted, inputs, want = problem(case)
    shape = wanted.shape
    graph = onnx.helper.make_graph([node(shape, "")], "main", *values(shape, case.rows, onnx.TensorProto.FLOAT))
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=OPSETS, ir_version=11))
    model.functions[("llmc", "Linear", "")] = linear(shape)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    plain = [(x if x.dtype == torch.int32 else x.float()).numpy() for x in inputs]
    feeds = {each.name: x for each, x in zip(graph.input, plain, strict=True)}
    (found,) = session.run(None, feeds)
    assert (torch.from_numpy(found).double() - want).norm() < 1e-5 * want.norm()


def test_few_outputs_are_made_in_portions_that_are_as_many_as_there_is_room_for() -> None:
    operation = LinearPlugin(InterpretedKernels(KernelRequest("Linear", O_PROJ), 90))
    layout = LinearLaunch(**operation.kernels.layouts[90])
    for most in (1, 16, 17, 32, 33, 500):
        asked = operation.workspace_bytes([(most, 16384)])
        plans = [LinearPlan(O_PROJ, layout, rows, sms) for rows in range(1, most + 1) for sms in (20, 132, 500)]
        assert all(plan.workspace <= asked for plan in plans)
        assert all(plan.portion * plan.portions >= O_PROJ.inputs for plan in plans)
    one = LinearPlan(O_PROJ, layout, 1, 132)
    assert one.grid == (112, 1, 4) and LinearPlan(O_PROJ, layout, 33, 132).portions == 1
    assert LinearPlan(O_PROJ, layout, 1, 20).grid == (112, 1, 1)
    assert LinearPlan(O_PROJ, layout, 16, 2 * MOST_MULTIPROCESSORS).grid == (112, 1, 8)


@pytest.mark.parametrize(
    ("shape", "sm"), COMPILED, ids=lambda x: x.weight.form if isinstance(x, LinearShape) else str(x)
)
def test_compiles_without_spills(shape: LinearShape, sm: int) -> None:
    made = compiled_without_spills(KernelRequest("Linear", shape), sm)
    assert sorted(made) == sorted(["add", "portions_8", "portions_16", *(f"product_{rows}" for rows in HEIGHTS)])


FLOAT, BFLOAT16, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT32
OPSETS = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("llmc", 1)]


def node(shape: LinearShape, key: str) -> onnx.NodeProto:
    names = ["x", "words", "scales", *["bias"] * shape.bias]
    return onnx.helper.make_node("Linear", names, ["y"], "layer/Linear", domain="llmc", kernels=key)


def values(shape: LinearShape, rows: int | str, kind: int) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of a graph of that node."""
    value = onnx.helper.make_tensor_value_info
    words, scales = (each.shape for each in shape.weight.inputs(1, shape.outputs, shape.inputs, shape.dtype))
    inputs = [value("x", kind, [rows, shape.inputs]), value("words", INT32, words), value("scales", FLOAT, scales)]
    inputs += [value("bias", kind, [shape.outputs])] * shape.bias
    return inputs, [value("y", kind, [rows, shape.outputs])]


def test_an_engine_holds_it(tmp_path: Path) -> None:
    wanted, (_, *weights), _ = problem(HELD)
    shape = LinearShape(1152, 200, "bf16", wanted.shape.weight, True)
    (made,) = kernel_sets([KernelRequest("Linear", shape)], [89], lambda _: None)
    kernel_set.write(tmp_path / "rtx.kernels.safetensors", [made])
    (x, *_), outputs = values(shape, "N", BFLOAT16)
    constants = [
        numpy_helper.from_array(each.numpy(), name) for each, name in zip(weights, ("words", "scales"), strict=False)
    ]
    constants.append(onnx.helper.make_tensor("bias", BFLOAT16, [200], weights[2].float().numpy()))
    graph = onnx.helper.make_graph([node(shape, made.key)], "main", [x], outputs, constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=OPSETS, ir_version=11), tmp_path / "main.onnx")
    profile = {"x": [[1, 1152], [1, 1152], [64, 1152]]}
    given = TENSORRT_RTX, tmp_path / "main.onnx", tmp_path / "rtx.engine", [89], [profile], 60
    said = compile_engine(*given, lambda _: None, tmp_path / "rtx.kernels.safetensors")
    assert [each.to_json() for each in said.outputs] == [{"name": "y", "dtype": "bf16", "shape": [-1, 200]}]
    assert made.key.encode() in (tmp_path / "rtx.engine").read_bytes()


if __name__ == "__main__":
    let_the_interpreter_multiply_bfloat16()
    let_the_interpreter_round_to_bfloat16()
    torch.save({tuple(each): in_kernels(each) for each in CASES}, sys.argv[1])
