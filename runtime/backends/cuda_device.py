"""A GPU through the CUDA runtime: its memory, and one stream for everything.

While a stream is captured, nothing else may be enqueued on it, and memory may be neither allocated nor freed. So one
thread at a time has the device, in `with device.used()`. Memory is also freed by the garbage collector, which runs in
any thread at any place: `drop` never waits, and what cannot be freed at once is when the device is given back.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray

from llmc.errors import MachineError

Array = NDArray[Any]


class Device:
    """Its methods are called in `used`, apart from `drop`, which may be called anywhere.

    Attributes:
        number: As CUDA counts; the current GPU's, if none is given.
        stream: The one that everything is enqueued on.
    """

    def __init__(self, number: int | None = None) -> None:
        from cuda.bindings import runtime as cuda

        self._cuda, self._lock = cuda, threading.Lock()
        self._dropped: deque[int] = deque()
        self.number = int(call(cuda, "cudaGetDevice")) if number is None else number
        with self.used():
            self.stream = int(call(cuda, "cudaStreamCreate"))

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Waits until no other thread has the device, which is the calling thread's current one until the end.

        CUDA keeps the current device for each thread, and starts every thread with the first, but without its context,
        which launching kernels takes.
        """
        with self._lock:
            before = int(call(self._cuda, "cudaGetDevice"))
            call(self._cuda, "cudaSetDevice", self.number)
            self._free_dropped()
            try:
                yield
            finally:
                self._free_dropped()
                if before != self.number:
                    self._cuda.cudaSetDevice(before)  # an error would hide one of the work itself
        self._free_if_idle()

    def zeros(self, size: int) -> int:
        """Zeros, since a cache entry that is masked still must not be infinite."""
        error, address = self._cuda.cudaMalloc(size)
        if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise MachineError(
                f"no {size:,} bytes left on the GPU; build with a smaller `context` or `prefill`, or give fewer "
                "prompts at once"
            )
        check(self._cuda, error)
        call(self._cuda, "cudaMemsetAsync", address, 0, size, self.stream)
        return int(address)

    def drop(self, buffers: dict[str, int]) -> None:
        """Frees them: now, or when the thread that has the device gives it back."""
        self._dropped.extend(buffers.values())
        buffers.clear()
        self._free_if_idle()

    def free(self, buffers: dict[str, int]) -> None:
        """At once."""
        self._dropped.extend(buffers.values())
        buffers.clear()
        self._free_dropped()

    def copy(self, target: int, source: int, size: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call(self._cuda, "cudaMemcpyAsync", target, source, size, kind, self.stream)

    def upload(self, address: int, array: Array) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cuda, "cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: Array, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cuda, "cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def captured(self, enqueue: Callable[[], None]) -> Any:
        """What it enqueues, to be launched as often as wanted. If it raises, the capture ends all the same."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._cuda, "cudaStreamBeginCapture", self.stream, mode)
        try:
            enqueue()
        except BaseException:
            error, graph = self._cuda.cudaStreamEndCapture(self.stream)
            if error == self._cuda.cudaError_t.cudaSuccess:
                self._cuda.cudaGraphDestroy(graph)
            self._cuda.cudaGetLastError()  # a capture that failed leaves its error behind, for whoever asks next
            raise
        graph = call(self._cuda, "cudaStreamEndCapture", self.stream)
        try:
            return call(self._cuda, "cudaGraphInstantiate", graph, 0)
        finally:
            self._cuda.cudaGraphDestroy(graph)

    def launch(self, graph: Any) -> None:
        call(self._cuda, "cudaGraphLaunch", graph, self.stream)

    def forget(self, graph: Any) -> None:
        if graph is not None:
            self._cuda.cudaGraphExecDestroy(graph)

    def synchronize(self) -> None:
        call(self._cuda, "cudaStreamSynchronize", self.stream)

    def _free_if_idle(self) -> None:
        """Whoever has the device, be it this thread, frees when giving it back what was dropped before."""
        while self._dropped and self._lock.acquire(blocking=False):
            try:
                self._free_dropped()
            finally:
                self._lock.release()

    def _free_dropped(self) -> None:
        while self._dropped:
            # It waits for work under way; an error would only repeat an earlier one.
            self._cuda.cudaFree(self._dropped.popleft())


def compute_capability(device: int | None = None) -> int | str:
    """Of a GPU, by its number, or of the current one, times ten; or why there is none."""
    from cuda.bindings import runtime as cuda

    error, count = cuda.cudaGetDeviceCount()
    if error != cuda.cudaError_t.cudaSuccess or not count:
        return f"there is no GPU that CUDA can use ({reason(cuda, error)})"
    if device is not None and device >= count:
        return f"there is no GPU {device}: CUDA counts {count}, from 0 on"
    if device is None:
        device = call(cuda, "cudaGetDevice")
    attributes = cuda.cudaDeviceAttr
    major, minor = (
        call(cuda, "cudaDeviceGetAttribute", attribute, device)
        for attribute in (attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor)
    )
    return 10 * int(major) + int(minor)


def call(cuda: Any, name: str, *arguments: Any) -> Any:
    """What the function returns besides its error code."""
    error, *results = getattr(cuda, name)(*arguments)
    check(cuda, error)
    return results[0] if results else None


def check(cuda: Any, error: Any) -> None:
    if error != cuda.cudaError_t.cudaSuccess:
        raise MachineError(f"the GPU failed: {reason(cuda, error)}")


def reason(cuda: Any, error: Any) -> str:
    _, text = cuda.cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(text)
