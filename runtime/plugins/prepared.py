"""What an operation launches, prepared once for inputs of some shapes and then launched with any addresses.

An operation's `launch` is Python that says what to do; a step that decodes has hundreds of such calls, each shorter on
the GPU than this takes. But all that it says is decided by shapes: which kernels, how large their grids are, their
numbers, and how far into which tensor or workspace their addresses point. So it is called once, with addresses that
tell whose they are; later launches put the real ones in their places, and make one driver call for each kernel.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llmc.runtime.plugins.cubin import ALIGNMENT, CubinKernel, LaunchTape, packed

if TYPE_CHECKING:
    from llmc.runtime.plugins.operation import Gpu, Operation, Shape

_BITS = 48  # more than an offset has; those above them number the tensor
_MIDDLE = 1 << (_BITS - 1)  # of each one's span, for offsets of either sign
_BYTES = 8  # of every parameter


class PreparedLaunch:
    """One operation on one GPU, for inputs of given shapes. One thread at a time may use it."""

    def __init__(self, operation: Operation, gpu: Gpu, shapes: Sequence[Shape]) -> None:
        inputs, outputs = len(operation.inputs), operation.outputs
        owners = [
            *range(inputs),
            *(inputs + i if out.aliased is None else out.aliased for i, out in enumerate(outputs)),
        ]
        marked = [_marked(owner) for owner in (*owners, len(owners))]  # the last is the workspace
        tape = LaunchTape()
        operation.launch(gpu, shapes, marked[:inputs], marked[inputs:-1], marked[-1], tape)
        self._name, self._inputs = operation.name, inputs
        self._aliased = [(place, owner) for place, owner in enumerate(owners) if place != owner]
        block = _Block(tape)
        self._block, self._points, self._launches = block.memory, list(block.points), block.launches
        self._write = struct.Struct(f"={len(self._points)}Q").pack_into
        self._given: tuple[int, ...] = ()
        self._stream, self._handle = -1, None

    def __call__(self, given: tuple[int, ...], stream: int) -> None:
        """Does not wait. given: the addresses of inputs, outputs and workspace, one after the other."""
        if given != self._given:
            self._place(given)
        if stream != self._stream:
            from cuda.bindings import driver

            self._stream, self._handle = stream, driver.CUstream(stream)
        for enqueue, kernel in self._launches:
            if error := enqueue(self._handle):
                kernel.fail("cuLaunchKernel", error)

    def _place(self, given: tuple[int, ...]) -> None:
        for output, source in self._aliased:
            if given[output] != given[source]:
                number = output - self._inputs
                raise ValueError(f"{self._name}: output {number} must be input {source}, in the same memory")
        addresses = [given[owner] + offset for owner, offset in self._points]
        for address in addresses:
            if address % ALIGNMENT:
                raise ValueError(f"{self._name}: {address:#x} is no multiple of {ALIGNMENT}")
        self._write(self._block, 0, *addresses)
        self._given = given


class _Block:
    """The parameters of all launches of a tape. Kernels are told where each of theirs lies, so one address or number
    serves all that take it.

    Attributes:
        points: Whose addresses lead the block, and how far they point into what is there.
        launches: Each to be called with the stream, and its kernel.
    """

    def __init__(self, tape: LaunchTape) -> None:
        self.points: dict[tuple[int, int], int] = {}
        self._numbers: dict[bytes, int] = {}
        found = [(kernel, grid, self._parameters(kernel, values)) for kernel, grid, values in tape.launches]
        self.memory = ctypes.create_string_buffer(_BYTES * (len(self.points) + len(self._numbers)))
        start = ctypes.addressof(self.memory)
        numbers = start + _BYTES * len(self.points)
        for number, index in self._numbers.items():
            ctypes.memmove(numbers + _BYTES * index, number, _BYTES)
        self.launches: list[tuple[Callable[[Any], Any], CubinKernel]] = []
        for kernel, grid, parameters in found:
            places = [(start if is_point else numbers) + _BYTES * index for is_point, index in parameters]
            self.launches.append((kernel.enqueuing(grid, (ctypes.c_uint64 * len(places))(*places)), kernel))

    def _parameters(self, kernel: CubinKernel, values: dict[str, float]) -> list[tuple[bool, int]]:
        """Of each, whether it is an address that is not known yet, and the how manieth of these or of the others."""
        made = []
        for name, kind in kernel.types.items():
            value = values[name]
            owner = int(value) >> _BITS if kind.startswith("*") else 0
            if owner:
                point = owner - 1, (int(value) & (1 << _BITS) - 1) - _MIDDLE
                made.append((True, self.points.setdefault(point, len(self.points))))
            else:
                made.append((False, self._number(packed(kind, value))))
        return made + [(False, self._number(bytes(_BYTES)))] * kernel.null_pointers

    def _number(self, packed: bytes) -> int:
        return self._numbers.setdefault(packed, len(self._numbers))


def _marked(owner: int) -> int:
    return (owner + 1 << _BITS) + _MIDDLE
