"""Kernels that were compiled ahead of time, launched through the CUDA driver.

What launching takes is written by `llmc.convert.kernels.ahead_of_time`; `llmc.contracts.kernels` says how it looks in a
file. Nothing here needs pydantic: a machine that only checks kernels need not have it.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NoReturn

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
        self._struct = struct.Struct(f"={''.join(map(_format, self.types.values()))}{8 * nulls}x")
        self.values = ctypes.create_string_buffer(self._struct.size)
        count = len(self.types) + nulls
        self.addresses = ctypes.addressof(self.values) + 8 * np.arange(count, dtype=np.uint64)

    def fill(self, values: Mapping[str, float]) -> None:
        """values: by name; addresses are integers."""
        self.check(values)
        ordered = [values[name] for name in self.types]
        for value, (name, kind) in zip(ordered, self.types.items(), strict=True):
            if kind.startswith("*") and value % self._alignment:
                raise ValueError(f"{name}: {int(value):#x} is no multiple of {self._alignment}")
        self._struct.pack_into(self.values, 0, *ordered)

    def check(self, values: Mapping[str, float]) -> None:
        if values.keys() != self.types.keys():
            raise ValueError(f"{self._name} takes {', '.join(self.types)}; not {', '.join(values)}")


class LaunchTape(int):
    """Given in place of a stream: launches are written down, each with its kernel, grid and values, and not made."""

    def __init__(self) -> None:
        self.launches: list[tuple[CubinKernel, tuple[int, int, int], dict[str, float]]] = []


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
        if isinstance(stream, LaunchTape):
            self._parameters.check(values)
            stream.launches.append((self, grid, values))
            return
        shared_bytes = self._description.shared_bytes
        with self._lock:  # the call copies the values
            self._parameters.fill(values)
            addresses = int(self._parameters.addresses.ctypes.data)
            self._call("cuLaunchKernel", self._function, *grid, *self._block, shared_bytes, stream, addresses, 0)

    def enqueuing(self, grid: tuple[int, int, int], addresses: ctypes.Array[Any]) -> Callable[[Any], Any]:
        """What launches it with the parameters at these addresses, given a CUstream, and returns an error code."""
        launch = partial(
            self._driver.cuLaunchKernel, self._function, *grid, *self._block, self._description.shared_bytes
        )
        place = ctypes.addressof(addresses)

        def enqueue(stream: Any, addresses: ctypes.Array[Any] = addresses) -> Any:  # it keeps them, which must live on
            return launch(stream, place, 0)[0]

        return enqueue

    @property
    def types(self) -> dict[str, str]:
        """Of its arguments, by name."""
        return self._parameters.types

    @property
    def null_pointers(self) -> int:
        return self._description.null_pointers

    def close(self) -> None:
        self._call("cuModuleUnload", self._module)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the function returns besides its error code."""
        error, *found = getattr(self._driver, name)(*arguments)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            self.fail(name, error)
        return found[0] if found else None

    def fail(self, name: str, error: Any) -> NoReturn:
        """Raise MachineError for what a function of the driver says."""
        kernel, sm = self._description.name, self._description.sm
        raise MachineError(f"{kernel}, a kernel for SM {sm}: {name} says {error.name}")


def packed(kind: str, value: float) -> bytes:
    """The eight bytes of a parameter."""
    return struct.pack(f"={_format(kind)}", value)


def _format(kind: str) -> str:
    return "Q" if kind.startswith("*") else _PACKED[kind]
