"""What was prepared launches what the operations say, with the addresses of each call. The driver is stood in for."""

from __future__ import annotations

import ctypes
import random
import sys
import types
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
from cuda.bindings import driver as real_driver

from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.errors import MachineError
from llmc.runtime.plugins import tensorrt as plugins
from llmc.runtime.plugins.append_float8 import EntryShape
from llmc.runtime.plugins.grouped_query_attention import GroupedQueryShape
from llmc.runtime.plugins.grouped_topk import RoutingShape
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.latent_attention import LatentShape
from llmc.runtime.plugins.linear import LinearShape
from llmc.runtime.plugins.mixture_of_experts import ExpertsShape, ExpertWeights
from llmc.runtime.plugins.operation import Gpu, Operation
from llmc.runtime.plugins.phased_latent_attention import PhasedShape
from llmc.runtime.plugins.prepared import PreparedLaunch

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

SM, GPU = 90, Gpu(90, 132, 0)
INT4, PLAIN = ExpertWeights("int4", 32, 1, "bf16"), ExpertWeights("plain")
EXPERTS = ExpertsShape(16, 2, 128, 64, "bf16", "fp32", INT4, INT4)
GROUPED = GroupedQueryShape(16, 4, 64, 32, "bf16", 100, True, True)
PHASED = PhasedShape(16, 64, 64, 16, 64, "bf16", True)
SIZES: dict[str, ctypes._SimpleCData[Any] | Any] = {
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "fp32": ctypes.c_float,
}
# An operation, what its kernels depend on, and sizes of the axes that any size will do for, one by one.
CASES: dict[str, tuple[str, Any, list[int]]] = {
    "latent attention, split": ("LatentAttention", LatentShape(16, 64, 16, "bf16"), [2, 1, 2, 4096, 2]),
    "latent attention, whole": ("LatentAttention", LatentShape(16, 64, 16, "bf16", True), [1, 3000, 1, 4096, 1]),
    "phased latent attention, absorbed": ("PhasedLatentAttention", PHASED, [2, 1, 2, 4096, 2, 2, 1, 2, 1]),
    "phased latent attention, expanded": ("PhasedLatentAttention", PHASED, [1, 0, 1, 200_000, 1, 1, 700, 1, 700]),
    "grouped heads, split": ("GroupedQueryAttention", GROUPED, [2, 1, 2, 4096, 2, 4096, 2]),
    "grouped heads, whole": ("GroupedQueryAttention", GROUPED, [1, 3000, 1, 4096, 1, 4096, 1]),
    "float8 entries": ("AppendFloat8", EntryShape(80, "fp16"), [3, 64, 3, 5, 3]),
    "few choices": ("MixtureOfExperts", EXPERTS, [1, 1, 1]),
    "many choices, plain": ("MixtureOfExperts", ExpertsShape(**vars(EXPERTS) | {"gate_up": PLAIN}), [700] * 3),
    "with biases": ("MixtureOfExperts", ExpertsShape(**vars(EXPERTS) | {"bias": True, "limit": 7.0}), [3] * 3),
    "routing": ("GroupedTopK", RoutingShape(16, 2, 4, 2, "sigmoid", 2, True, 2.5, "fp32"), [3]),
    "linear, in portions": ("Linear", LinearShape(8192, 128, "bf16", INT4), [1]),
    "linear": ("Linear", LinearShape(128, 128, "bf16", INT4, True), [100]),
}


class Driver:
    """The functions of cuda.bindings.driver that a kernel calls; `calls` of those that launch, parameters read."""

    CUresult, CUfunction_attribute, CUstream = real_driver.CUresult, real_driver.CUfunction_attribute, int
    result = real_driver.CUresult.CUDA_SUCCESS

    def __init__(self) -> None:
        self.arguments: dict[str, list[Any]] = {}  # ctypes of each kernel's
        self.calls = list[tuple[Any, ...]]()

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        return self.result, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[Any, ...]:
        return self.result, name.decode()

    def cuFuncSetAttribute(self, *arguments: Any) -> tuple[Any, ...]:
        return (self.result,)

    def cuLaunchKernel(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        *others, addresses, extra = arguments
        kinds = self.arguments[function]
        places = (ctypes.c_uint64 * len(kinds)).from_address(addresses)
        values = [kind.from_address(place).value for kind, place in zip(kinds, places, strict=True)]
        self.calls.append((function, *others, values, extra))
        return (self.result,)

    def taken(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=made))
    return made


def operation_of(case: str, driver: Driver) -> tuple[Operation, list[tuple[int, ...]]]:
    """With kernels that take what the real ones take, and the shapes of its inputs."""
    name, shape, sizes = CASES[case]
    request, kernels = KernelRequest(name, shape), {}
    for role, source in request.module().sources(shape, SM).items():
        given = [(each, source.types[each]) for each in source.kernel.arg_names if each not in source.constants]
        kernels[role] = {
            "name": f"_{role}", "sm": SM, "threads": 32 * source.warps, "shared_bytes": 1024, "alignment": 16,
            "arguments": [{"name": each, "type": kind} for each, kind in given], "null_pointers": 2,
            "registers": 0, "stack_bytes": 0, "cubin": role,
        }  # fmt: skip
        driver.arguments[f"_{role}"] = [SIZES.get(kind, ctypes.c_uint64) for _, kind in given] + [ctypes.c_uint64] * 2
    compiled = {"layout": asdict(request.module().layout_for(shape, SM)), "kernels": kernels}
    kind = plugins.operations.get(name)
    told = {"operation": name, "shape": asdict(shape), "sm": {str(SM): compiled}}
    operation = kind(KernelSet(told, str.encode), **dict.fromkeys(kind.scalars, 0.5))
    free = iter(sizes)
    shapes = [tuple(next(free) if size is None else size for size in each.shape) for each in operation.inputs]
    assert next(free, None) is None
    return operation, shapes


def addresses(operation: Operation, seed: int) -> tuple[list[int], list[int], int]:
    """Of inputs, outputs and workspace."""
    numbers = random.Random(seed)

    def address() -> int:
        return 256 * numbers.randrange(1 << 10, 1 << 39)

    inputs = [address() for _ in operation.inputs]
    outputs = [address() if each.aliased is None else inputs[each.aliased] for each in operation.outputs]
    return inputs, outputs, address()


@pytest.mark.parametrize("case", CASES)
def test_launches_what_the_operation_says(case: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, shapes = operation_of(case, driver)
    given = [addresses(operation, seed) for seed in range(3)]
    wanted = []
    for inputs, outputs, workspace in given:
        operation.launch(GPU, shapes, inputs, outputs, workspace, 7)
        wanted.append(driver.taken())
    assert wanted[0] and wanted[0] != wanted[1]
    prepared = PreparedLaunch(operation, GPU, shapes)
    assert not driver.calls
    monkeypatch.setattr(operation, "launch", None)  # it is not asked again
    for (inputs, outputs, workspace), want in zip(given + given[:1], wanted + wanted[:1], strict=True):
        for _ in range(2):
            prepared((*inputs, *outputs, workspace), 7)
            assert driver.taken() == want
    prepared((*inputs, *outputs, workspace), 8)
    assert {call[8] for call in driver.taken()} == {8}


def flat(given: tuple[Sequence[int], Sequence[int], int]) -> tuple[int, ...]:
    return (*given[0], *given[1], given[2])


def test_refuses_what_kernels_must_not_be_given(driver: Driver) -> None:
    operation, shapes = operation_of("float8 entries", driver)
    prepared = PreparedLaunch(operation, GPU, shapes)
    inputs, _, workspace = addresses(operation, 0)
    with pytest.raises(ValueError, match="AppendFloat8: output 0 must be input 0, in the same memory"):
        prepared((*inputs, inputs[0] + 256, workspace), 7)
    with pytest.raises(ValueError, match=r"AppendFloat8: 0x\w+8 is no multiple of 16"):
        prepared((inputs[0], inputs[1] + 8, *inputs[2:], inputs[0], workspace), 7)
    assert not driver.calls
    driver.result = real_driver.CUresult.CUDA_ERROR_LAUNCH_FAILED
    with pytest.raises(MachineError, match="_append, a kernel for SM 90: cuLaunchKernel says CUDA_ERROR_LAUNCH_FAILED"):
        prepared(flat(addresses(operation, 0)), 7)


def test_kernels_are_told_all_that_they_take(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, shapes = operation_of("float8 entries", driver)
    kernel = operation.kernels.kernel("append", SM)
    launch = kernel.launch
    monkeypatch.setattr(kernel, "launch", lambda grid, stream, **values: launch(grid, stream, cache=values["cache"]))
    with pytest.raises(ValueError, match=r"_append takes cache, entries, .*; not cache$"):
        PreparedLaunch(operation, GPU, shapes)
