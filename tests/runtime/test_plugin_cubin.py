"""Parameters of kernels compiled ahead of time are packed as the kernels read them; the driver is stood in for."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as real_driver
from safetensors.numpy import save

from llmc.contracts import kernels as contract
from llmc.errors import InputError, MachineError
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins.cubin import CubinKernel, KernelDescription, KernelParams

DESCRIPTION = KernelDescription(
    name="_attend",
    sm=90,
    threads=256,
    shared_bytes=200_000,
    alignment=16,
    arguments={"query": "*bf16", "scale": "fp32", "tokens": "i32", "capacity": "i64"},
    null_pointers=2,
    registers=128,
    stack_bytes=0,
)
VALUES = {"tokens": 3, "capacity": 2**40, "query": 2**63 + 16, "scale": 0.1}


def read(addresses: int) -> list[Any]:
    """What a kernel of DESCRIPTION finds at its parameters."""
    kinds: tuple[Any, ...] = (
        ctypes.c_uint64,
        ctypes.c_float,
        ctypes.c_int32,
        ctypes.c_int64,
        ctypes.c_uint64,
        ctypes.c_uint64,
    )
    places = (ctypes.c_void_p * len(kinds)).from_address(addresses)
    return [kind.from_address(place).value for kind, place in zip(kinds, places, strict=True)]


class Driver:
    """The functions of cuda.bindings.driver that a kernel calls; `calls` of them all."""

    CUresult, CUfunction_attribute = real_driver.CUresult, real_driver.CUfunction_attribute
    result = real_driver.CUresult.CUDA_SUCCESS

    def __init__(self) -> None:
        self.calls = list[Any]()

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        self.calls.append(image)
        return self.result, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[Any, ...]:
        self.calls.append((module, name))
        return self.result, "function"

    def cuFuncSetAttribute(self, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append(arguments)
        return (self.result,)

    def cuLaunchKernel(self, *arguments: Any) -> tuple[Any, ...]:
        *others, parameters, extra = arguments
        self.calls.append((*others, read(parameters), extra))
        return (self.result,)

    def cuModuleUnload(self, module: str) -> tuple[Any, ...]:
        self.calls.append(module)
        return (self.result,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=made))
    return made


def test_launches_with_shared_memory_and_parameters(driver: Driver) -> None:
    kernel = CubinKernel(b"cubin", DESCRIPTION)
    kernel.launch((4, 2, 1), 7, **VALUES)
    kernel.close()
    limit = real_driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    seen = [2**63 + 16, float(np.float32(0.1)), 3, 2**40, 0, 0]
    assert driver.calls == [
        b"cubin",
        ("module", b"_attend"),
        ("function", limit, 200_000),
        ("function", 4, 2, 1, 256, 1, 1, 200_000, 7, seen, 0),
        "module",
    ]


def test_a_description_in_a_file_is_the_contract_s() -> None:
    told = DESCRIPTION.to_json()
    assert contract.KernelDescription.model_validate(told).to_json() == told
    assert list(told) == list(contract.KernelDescription.model_fields)
    assert KernelDescription.of(json.loads(json.dumps(told | {"later": 1}))) == DESCRIPTION


def test_says_which_kernel_does_not_load(driver: Driver) -> None:
    driver.result = real_driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
    with pytest.raises(MachineError, match=r"_attend, a kernel for SM 90: cuModuleLoadData says CUDA_ERROR_NO_BINARY"):
        CubinKernel(b"cubin", DESCRIPTION)


def test_refuses_other_arguments() -> None:
    parameters = KernelParams(DESCRIPTION)
    with pytest.raises(ValueError, match=r"takes query, scale, tokens, capacity; not query$"):
        parameters.fill({"query": 16})
    with pytest.raises(ValueError, match="query: 0x8 is no multiple of 16"):
        parameters.fill(VALUES | {"query": 8})


def test_sizes_are_those_that_the_cubin_says(tmp_path: Path) -> None:
    """Of every parameter, those that Triton adds among them."""
    pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")
    from triton import knobs

    from llmc.convert.kernels.ahead_of_time import compile_kernel
    from llmc.convert.kernels.latent_attention import sources
    from llmc.runtime.plugins.latent_attention import LatentShape

    of_types = {"fp32": 4, "i32": 4, "i64": 8}
    for name, source in sources(LatentShape(4, 32, 16, "fp16"), 80).items():
        made = compile_kernel(source, 80)
        file = tmp_path / f"{name}.cubin"
        file.write_bytes(made.cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-elf", file]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        sizes = {int(i, 16): int(size, 16) for i, size in re.findall(r"Ordinal : 0x(\w+).*Size    : 0x(\w+)", told)}
        parameters = KernelParams(made.description)
        wanted = [8 if kind.startswith("*") else of_types[kind] for kind in parameters.types.values()]
        wanted += [8] * made.description.null_pointers
        assert [sizes[i] for i in sorted(sizes)] == wanted
        assert len(parameters.addresses) == len(wanted)


@pytest.mark.parametrize(
    "told",
    [
        "{", "{}", "[1]", '[{"operation": "LatentAttention"}]', "[" * 5000,
        '[{"operation": "A", "shape": {}, "sm": {}}]',
        '[{"operation": "A", "shape": {}, "sm": {"80": {"layout": {}, "kernels": {"whole": {"name": "x"}}}}}]',
        '[{"operation": "A", "shape": {}, "sm": {"eighty": {"layout": {}, "kernels": {}}}}]',
    ],
)  # fmt: skip
def test_a_file_of_kernels_that_says_something_else(tmp_path: Path, told: str) -> None:
    file = tmp_path / "a.kernels.safetensors"
    file.write_bytes(save({"x": np.zeros(1, np.uint8)}, {"llmc": told}))
    with pytest.raises(InputError, match=r"a\.kernels\.safetensors: no kernels of llmc \("):
        kernel_set.read(file)
    with pytest.raises(InputError, match="cannot be read"):
        kernel_set._cubin(file, "0" * 64)
