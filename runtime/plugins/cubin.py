"""Kernels that were compiled ahead of time, launched through the CUDA driver.

What launching takes is written by `llmc.convert.kernels.ahead_of_time`; `llmc.contracts.kernels` says how it looks in a
file. Nothing here needs pydantic: a machine that only checks kernels need not have it.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmc.errors import MachineError

ALIGNMENT = 16  # of every address, in bytes: kernels are compiled to load so many at once
_PACKED = {"i32": "i4x", "i64": "q", "fp32": "f4x"}  # as `struct` calls them, each filled up to 8 bytes


@dataclass(frozen=True)
class KernelDescription:
    """What launching a kernel takes; see `llmc.contracts.kernels`, which the fields are called after.

    Attributes:
        arguments: their names and types, in the order of the kernel
    """

    name: str
    sm: int
    threads: int
    shared_bytes: int
    alignment: int
    arguments: Mapping[str, str]
    null_pointers: int
    registers: int
    stack_bytes: int

    def to_json(self) -> dict[str, Any]:
        arguments = [{"name": name, "type": kind} for name, kind in self.arguments.items()]
        return asdict(self) | {"arguments": arguments}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> KernelDescription:
        """From JSON, which may say more."""
        arguments = {each["name"]: each["type"] for each in told["arguments"]}
        return cls(**{name: told[name] for name in cls.__dataclass_fields__} | {"arguments": arguments})


class KernelParams:
    """The values of a launch side by side, and `addresses` of them all as cuLaunchKernel wants them."""

    def __init__(self, description: KernelDescription) -> None:
        self._name, self._alignment = description.name, description.alignment
        self.types = dict(description.arguments)
        nulls = description.null_pointers
        packed = "".join("Q" if kind.startswith("*") else _PACKED[kind] for kind in self.types.values())
        self._struct = struct.Struct(f"={packed}{8 * nulls}x")
        self.values = ctypes.create_string_buffer(self._struct.size)
        count = len(self.types) + nulls
        self.addresses = ctypes.addressof(self.values) + 8 * np.arange(count, dtype=np.uint64)

    def fill(self, values: Mapping[str, float]) -> None:
        """values: by name; addresses are integers."""
        if values.keys() != self.types.keys():
            raise ValueError(f"{self._name} takes {', '.join(self.types)}; not {', '.join(values)}")
        ordered = [values[name] for name in self.types]
        for value, (name, kind) in zip(ordered, self.types.items(), strict=True):
            if kind.startswith("*") and value % self._alignment:
                raise ValueError(f"{name}: {int(value):#x} is no multiple of {self._alignment}")
        self._struct.pack_into(self.values, 0, *ordered)


class CubinKernel:
    """Loaded into the current context of the calling thread, which a call of the CUDA runtime makes."""

    def __init__(self, cubin: bytes, description: KernelDescription) -> None:
        from cuda.bindings import driver

        self._driver, self._description = driver, description
        self._parameters, self._lock = KernelParams(description), threading.Lock()
        self._block = (description.threads, 1, 1)
        self._module = self._call("cuModuleLoadData", cubin)
        self._function = self._call("cuModuleGetFunction", self._module, description.name.encode())
        # Without it a block has 48 KiB at most.
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", self._function, limit, description.shared_bytes)

    def launch(self, grid: tuple[int, int, int], stream: int, **values: float) -> None:
        """Does not wait. values: by name of the argument; addresses are integers."""
        shared_bytes = self._description.shared_bytes
        with self._lock:  # the call copies the values
            self._parameters.fill(values)
            addresses = int(self._parameters.addresses.ctypes.data)
            self._call("cuLaunchKernel", self._function, *grid, *self._block, shared_bytes, stream, addresses, 0)

    def close(self) -> None:
        self._call("cuModuleUnload", self._module)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the function returns besides its error code."""
        error, *found = getattr(self._driver, name)(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            kernel, sm = self._description.name, self._description.sm
            raise MachineError(f"{kernel}, a kernel for SM {sm}: {name} says {error.name}")
        return found[0] if found else None
