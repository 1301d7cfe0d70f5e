"""Kernels that were compiled ahead of time, launched through the CUDA driver.

What a cubin's kernel takes stands in a description, JSON, which `llmc.convert.kernels.ahead_of_time` writes:
name, sm, threads of a block, shared_bytes, alignment of addresses, arguments as [{"name", "type"}, …] in the order of
the kernel, and how many null_pointers follow them. Types are Triton's: "*…" is an address.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmc.errors import MachineError

ALIGNMENT = 16  # of every address, in bytes: kernels are compiled to load so many at once
_NUMPY = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}


class Parameters:
    """The values of a launch, each in memory of its own, and `addresses` of them all as cuLaunchKernel wants them."""

    def __init__(self, description: Mapping[str, Any], values: Mapping[str, float]) -> None:
        names = [each["name"] for each in description["arguments"]]
        if set(names) != set(values):
            raise ValueError(f"{description['name']} takes {', '.join(names)}; not {', '.join(values)}")
        self.values: list[NDArray[Any]] = []
        for each in description["arguments"]:
            value, address = values[each["name"]], each["type"].startswith("*")
            if address and value % description["alignment"]:
                raise ValueError(f"{each['name']}: {value:#x} is no multiple of {description['alignment']}")
            self.values.append(np.array(value, np.uint64 if address else _NUMPY[each["type"]]))
        self.values += [np.array(0, np.uint64)] * description["null_pointers"]
        self.addresses = np.array([value.ctypes.data for value in self.values], np.uint64)


class CubinKernel:
    """Loaded into the current context of the calling thread, which a call of the CUDA runtime makes."""

    def __init__(self, cubin: bytes, description: Mapping[str, Any]) -> None:
        from cuda.bindings import driver

        self._driver, self._description = driver, description
        self._module = self._call("cuModuleLoadData", cubin)
        self._function = self._call("cuModuleGetFunction", self._module, description["name"].encode())
        # Without it a block has 48 KiB at most.
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", self._function, limit, description["shared_bytes"])

    def launch(self, grid: tuple[int, int, int], stream: int, **values: float) -> None:
        """Does not wait. values: by name of the argument; addresses are integers."""
        parameters = Parameters(self._description, values)  # copied by the call
        block = (self._description["threads"], 1, 1)
        shared_bytes, addresses = self._description["shared_bytes"], int(parameters.addresses.ctypes.data)
        self._call("cuLaunchKernel", self._function, *grid, *block, shared_bytes, stream, addresses, 0)

    def close(self) -> None:
        self._call("cuModuleUnload", self._module)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the function returns besides its error code."""
        error, *found = getattr(self._driver, name)(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            kernel, sm = self._description["name"], self._description["sm"]
            raise MachineError(f"{kernel}, a kernel for SM {sm}: {name} says {error.name}")
        return found[0] if found else None
