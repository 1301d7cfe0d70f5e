"""A deserialized engine of TensorRT-RTX or TensorRT, and the steps that it makes.

Steps that decode are CUDA graphs. TensorRT-RTX captures them itself, and compiles the last kernels where an engine is
first run: these are kept for the next time (see kernel_cache.py).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import mmap
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError, MachineError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import kernel_cache
from llmc.runtime.backends.built_engines import BuiltEngine
from llmc.runtime.backends.cuda_device import Device, compute_capability
from llmc.runtime.plugins import tensorrt as plugins
from llmc.runtime.plugins.operation import Gpu
from llmc.tensorrt_package import TensorRTPackage

if TYPE_CHECKING:
    from llmc.contracts.engine import EngineDescription

Array = NDArray[Any]
_MOST_GRAPHS = 32  # of an engine; each takes some memory of the GPU
_LEAST_WIDE = 16  # what the lengths of wide steps are multiples of
# How the description calls types. bfloat16 is carried around as its bits.
_NUMPY = {
    "bool": np.bool_, "int8": np.int8,
    "int32": np.int32, "int64": np.int64, "float": np.float32, "half": np.float16, "bf16": np.uint16,
}  # fmt: skip


@dataclass
class EngineCache:
    """Device addresses of one buffer per cache input of either graph, [B, …, context, …].

    Attributes:
        whole: What this is rows of; it holds the memory.
    """

    batch: int
    buffers: dict[str, int] = field(default_factory=dict)
    whole: EngineCache | None = None


class LoadedEngine:
    """One deserialized engine, with a context for each profile that is used and buffers for the largest step.

    Attributes:
        caches: Shape and type of the inputs that are caches.
        scratch_bytes: What a step needs besides, whatever its profile.
        scratch: Address and bytes of that memory. All contexts share it, since one step is made at a time; a library
            that had to ask for it in the middle of a step could not capture it.
    """

    def __init__(self, package: TensorRTPackage, artifact: Artifact, device: Device, built: BuiltEngine) -> None:
        trt, description = importlib.import_module(package.module), built.description
        self._jit, self._device, self._path = package.jit, device, built.path
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        if built.kernels:
            kernels = artifact.file(built.kernels)
            if set(description.kernel_sets) - plugins.register(trt, kernels):
                raise InputError(f"{kernels}: other kernels than {self._path} needs; download it again")
            plugins.load(description.kernel_sets, Gpu.current())
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if hashlib.sha256(data).hexdigest() != description.sha256:  # the library trusts what it reads
                raise InputError(f"{self._path}: not the engine that was built; download it again")
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise MachineError(f"{self._path}: {package.module} {trt.__version__} cannot load it on this GPU")
        self.scratch_bytes, self.scratch = int(self._engine.device_memory_size_v2), (0, 0)
        self._kernel_file = _kernel_file(description, device.number)
        self._narrow_config, self._wide_config = (self._engine.create_runtime_config() for _ in range(2))
        for config in (self._narrow_config, self._wide_config):
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._jit:
            # Prompts have many lengths, each of which would be captured; what they gain by it is little.
            self._narrow_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._wide_config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self._kernels = self._narrow_config.create_runtime_cache()
            if kept := kernel_cache.read(self._kernel_file):
                self._kernels.deserialize(kept)  # what it cannot use, it compiles
            for config in (self._narrow_config, self._wide_config):
                config.set_runtime_cache(self._kernels)
        self._contexts: dict[int, Any] = {}
        self.prepare: Callable[[Any], None] = lambda _: None  # for each context before its use
        self._capturable = True
        # By profile and addresses. None: that step has been made, and will be captured the next time.
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._shapes: dict[int, Hashable] = {}  # of each profile's last step
        self._bound: dict[int, dict[str, tuple[int, tuple[int, ...] | None]]] = {}  # what each profile's context knows
        self._spans = [(profile.tokens[0], profile.tokens[1]) for profile in description.profiles]
        self._windows = [profile.window for profile in description.profiles]
        self._widest = max(most for _, most in self._spans)
        self._narrow = max((most for least, most in self._spans if least == most), default=0)
        io = {each.name: (tuple(each.shape), _NUMPY[each.dtype]) for each in description.inputs}
        self.caches = {name: kind for name, kind in io.items() if name.startswith("past.")}
        self._inputs = {name: dtype for name, (_, dtype) in io.items() if name not in self.caches}
        self._outputs = {
            each.name: _NUMPY[each.dtype] for each in description.outputs if not each.name.startswith("present.")
        }
        self._buffers: dict[str, int] = {}
        weakref.finalize(self, device.drop, self._buffers)
        self._sizes: dict[str, int] = {}

    def run(self, inputs: dict[str, Array], cache: EngineCache) -> dict[str, Array]:
        length, start = inputs["input_ids"].shape[1], int(inputs["cache_position"].max())
        if self._jit and length > self._narrow:
            inputs = _padded(inputs, min(usual_length(length), self._widest, max(self._windows) - start))
        profile = self._profile(inputs["input_ids"].shape[1], start + inputs["input_ids"].shape[1])
        context = self._context(profile)
        if "window" in self._inputs:
            inputs = {**inputs, "window": np.zeros(self._windows[profile], np.int8)}  # only its length counts
        for name, dtype in self._inputs.items():
            array: Array = np.ascontiguousarray(inputs[name], dtype)
            address = self._buffer(name, array.nbytes)
            if name != "window":
                self._device.upload(address, array)
            self._bind(profile, name, address, array.shape)
        for name, (shape, _) in self.caches.items():  # written in place
            self._bind(profile, name, cache.buffers[name], (cache.batch, *shape[1:]))
            self._bind(profile, name.replace("past.", "present."), cache.buffers[name])
        found = {name: np.empty(tuple(context.get_tensor_shape(name)), dtype) for name, dtype in self._outputs.items()}
        for name, array in found.items():
            self._bind(profile, name, self._buffer(name, array.nbytes))
        self._execute(profile, inputs, cache)
        for name, array in found.items():
            self._device.download(array, self._buffers[name])
        self._device.synchronize()
        if "hidden" in found:
            found["hidden"] = found["hidden"][:, :length]
        return found

    def capturable(self) -> dict[tuple[int, int, int], bool]:
        """By the least and most tokens and the window of each profile that was used."""
        stream = self._device.stream
        return {
            (*self._spans[profile], self._windows[profile]): bool(
                context.is_stream_capturable(stream) if self._jit else self._capturable
            )
            for profile, context in self._contexts.items()
        }

    def _execute(self, profile: int, inputs: dict[str, Array], cache: EngineCache) -> None:
        """A graph serves steps of the same shapes on the same memory; wide steps hardly gain by one.

        It also holds what the context was when it was captured. So new shapes end the graphs of the old ones, and are
        enqueued once before they are captured, as NVIDIA wants it: the first time writes what depends on the shapes.
        """
        context = self._contexts[profile]
        if self._jit or not self._capturable or inputs["input_ids"].shape[1] > self._narrow:
            self._enqueue(context)
            return
        shapes = (cache.batch, *(array.shape for array in inputs.values()))
        if shapes != self._shapes.get(profile):
            self._forget_graphs(profile)
            self._shapes[profile] = shapes
        step = (profile, *self._buffers.values(), *cache.buffers.values())
        if step in self._graphs and (graph := self._graphs[step] or self._captured(context)):
            self._graphs[step] = graph
            self._device.launch(graph)
            return
        self._enqueue(context)
        if self._capturable:
            if len(self._graphs) == _MOST_GRAPHS:
                self._device.forget(self._graphs.pop(next(iter(self._graphs))))
            self._graphs[step] = None

    def _captured(self, context: Any) -> Any:
        """None if this engine's steps cannot be captured; they run as they are from then on."""
        try:
            return self._device.captured(lambda: self._enqueue(context))
        except MachineError:
            self._capturable = False
            self._forget_graphs()
            return None

    def _enqueue(self, context: Any) -> None:
        told = len(plugins.failures)
        if not context.execute_async_v3(self._device.stream):
            why = next(iter(plugins.failures[told:]), "its reason is on standard error")
            raise MachineError(f"{self._path}: the engine failed; {why}")

    def close(self) -> None:
        if self._contexts and self._jit:
            kernel_cache.write(self._kernel_file, bytes(memoryview(self._kernels.serialize())))
        self._forget_graphs()
        self._contexts.clear()
        self._engine = self._runtime = self._narrow_config = self._wide_config = self._kernels = None
        self._device.free(self._buffers)

    def _forget_graphs(self, profile: int | None = None) -> None:
        """Those of a profile, or all."""
        for step in [step for step in self._graphs if profile in (step[0], None)]:
            self._device.forget(self._graphs.pop(step))

    def _profile(self, length: int, end: int) -> int:
        """For steps of `length` tokens a row that look at `end` cache entries."""
        for profile, ((least, most), window) in enumerate(zip(self._spans, self._windows, strict=True)):
            if least <= length <= most and end <= window:
                return profile
        raise InputError(f"{self._path}: has no profile for {length} tokens that end at {end}; build it again")

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            narrow = self._spans[profile][1] <= self._narrow
            context = self._engine.create_execution_context(self._narrow_config if narrow else self._wide_config)
            if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
                raise MachineError(f"{self._path}: no memory on the GPU to run it")
            context.set_device_memory(*self.scratch)
            self.prepare(context)
            self._contexts[profile] = context
        return self._contexts[profile]

    def _bind(self, profile: int, name: str, address: int, shape: tuple[int, ...] | None = None) -> None:
        """Unless its context knows already: a model has hundreds of caches, which stay from step to step."""
        context, bound = self._contexts[profile], self._bound.setdefault(profile, {})
        if bound.get(name) == (address, shape):
            return
        bound.pop(name, None)
        if (shape and not context.set_input_shape(name, shape)) or not context.set_tensor_address(name, address):
            raise MachineError(f"{self._path}: does not take {name} {list(shape or ())}")
        bound[name] = address, shape

    def _buffer(self, name: str, size: int) -> int:
        """Grows when a step is larger than all before."""
        size = max(size, 1)  # also an input of nothing has an address
        if size > self._sizes.get(name, 0):
            if name in self._buffers:
                self._device.free({name: self._buffers.pop(name)})
            self._buffers[name], self._sizes[name] = self._device.zeros(size), size
        return self._buffers[name]


def usual_length(length: int) -> int:
    """Of a wide step of that many tokens, up to a quarter more: four lengths for each power of two, since kernels are
    compiled for each that occurs.
    """
    step = max(_LEAST_WIDE, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


def _padded(inputs: dict[str, Array], length: int) -> dict[str, Array]:
    """With the last token of each row again and again. What they write into the cache lies behind what counts."""
    more = length - inputs["input_ids"].shape[1]
    if more <= 0:
        return inputs

    def pad(name: str, array: Array) -> Array:
        per_token = name in ("input_ids", "position_ids", "previous_hidden")
        return np.pad(array, [(0, 0), (0, more), (0, 0)][: array.ndim], "edge") if per_token else array

    return {name: pad(name, array) for name, array in inputs.items()}


def _kernel_file(description: EngineDescription, device: int) -> str:
    """Under which name the library's kernels for an engine are kept: for its hash, on this kind of GPU."""
    told = json.dumps({"engine": description.sha256, "release": description.release, "gpu": compute_capability(device)})
    return f"{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]}.bin"
