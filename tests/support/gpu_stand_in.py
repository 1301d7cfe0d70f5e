"""A GPU and the TensorRT packages, stood in for: CUDA is played by host memory, the engine by ONNX Runtime."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import runtime as real_cuda

from llmc.contracts.kernels import CompiledFor, KernelSetDescription, StoredKernel
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.quiet_onnxruntime import onnxruntime
from support.listed_files import list_files

RELEASE = importlib.metadata.version("tensorrt-rtx-cu13")
PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
PREFILL = 48
SCRATCH = 12_345  # bytes


def describe(graph: str, onnx: Path, sm: list[int], context: int) -> dict[str, object]:
    session = onnxruntime.InferenceSession(str(onnx))

    def io(nodes):
        types = {"tensor(int64)": "int64", "tensor(float)": "float"}
        shapes = ([d if isinstance(d, int) else context if d == "capacity" else -1 for d in n.shape] for n in nodes)
        return [{"name": n.name, "dtype": types[n.type], "shape": s} for n, s in zip(nodes, shapes, strict=True)]

    return {
        "engine": f"{graph}.engine", "graph": graph, "sm": sm, "package": "tensorrt_rtx",
        "release": RELEASE, "context": context, "batch": 2, "plugins": [],
        "bytes": len(str(onnx)), "text_bytes": 0, "weight_bytes": {},
        "sha256": hashlib.sha256(str(onnx).encode()).hexdigest(),
        "profiles": [{"tokens": each, "window": context} for each in ([1, 1], [2, 2], [3, PREFILL])],
        "inputs": io(session.get_inputs()), "outputs": io(session.get_outputs()),
    }  # fmt: skip


def add_engines(source: Path, directory: Path, target: str = "tensorrt-rtx", **changes: object) -> Path:
    """A copy of an artifact with "engines" that name the graphs of its ONNX Runtime target."""
    artifact = shutil.copytree(source, directory / "artifact")
    manifest = json.loads((artifact / "llmc.json").read_text())
    files = dict[str, str]()
    for graph in manifest["targets"]["onnxruntime"]["files"].keys() & {"main", "mtp"}:
        onnx = manifest["targets"]["onnxruntime"]["files"][graph]
        description = describe(graph, artifact / onnx, [80, 86], 160) | changes
        files |= add_engine(artifact, manifest, graph, artifact / onnx, description)
    manifest["targets"][target] = {"files": files}
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    return artifact


def add_engine(
    artifact: Path, manifest: dict[str, Any], name: str, onnx_file: Path, description: dict[str, Any]
) -> dict[str, str]:
    """An "engine" that names a graph, and its description: the files, of which the manifest then knows."""
    texts = {f"{name}.engine": str(onnx_file), f"{name}.json": json.dumps(description)}
    for file, text in texts.items():
        (artifact / file).write_text(text)
        manifest["files"][file] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {file: file for file in texts}


def add_kernels(artifact: Path, sm: int) -> None:
    """Plugins of both engines, with kernels for one SM alone. The driver is asked to load their "cubin"."""
    digest = hashlib.sha256(b"cubin").hexdigest()
    kernel = StoredKernel(
        name="_append", sm=sm, threads=128, shared_bytes=0, alignment=16, arguments=[], null_pointers=2,
        registers=32, stack_bytes=0, cubin=digest,
    )  # fmt: skip
    compiled = {str(sm): CompiledFor(layout={}, kernels={"append": kernel})}
    described = KernelSetDescription(operation="AppendFloat8", shape={"channels": 16, "dtype": "bf16"}, sm=compiled)
    made = KernelSet(described.to_json(), {digest: b"cubin"}.__getitem__)
    kernel_set.write(artifact / "a.kernels.safetensors", [made])
    plugin = {"plugins": ["llmc.AppendFloat8"], "kernels": "a.kernels.safetensors", "kernel_sets": [made.key]}
    names = [path.name for path in artifact.glob("m*.json") if path.stem in ("main", "mtp")]
    for name in names:
        (artifact / name).write_text(json.dumps(json.loads((artifact / name).read_text()) | plugin))
    manifest = json.loads((artifact / "llmc.json").read_text())
    manifest["targets"]["tensorrt-rtx"]["files"]["kernels"] = "a.kernels.safetensors"
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    list_files(artifact, *names, "a.kernels.safetensors")


class HostMemory:
    """The functions of cuda.bindings.runtime that the backend calls. New memory holds NaN."""

    cudaError_t, cudaMemcpyKind = real_cuda.cudaError_t, real_cuda.cudaMemcpyKind
    cudaDeviceAttr = real_cuda.cudaDeviceAttr
    fine = real_cuda.cudaError_t.cudaSuccess

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.graphs: list[list] = []  # that can be launched
        self.runs = lambda: True  # asked before each step that is enqueued
        self.count, self.thread = 1, threading.local()
        self.lengths = set[int]()  # of steps
        self.told = 0  # shapes and addresses
        self.asked, self.worked = set[int](), set[int]()  # devices: asked for attributes, and worked on
        self.kernels: list[Any] = []  # what was read of earlier runs
        self.module = "tensorrt_rtx"
        self.profiles, self.windows = set[Any](), 1

    def cudaGetErrorString(self, error):
        return real_cuda.cudaGetErrorString(error)

    # The current device is that of the thread, which starts with the first.

    def cudaGetDeviceCount(self):
        return self.fine, self.count

    def cudaGetDevice(self):
        return self.fine, getattr(self.thread, "device", 0)

    def cudaSetDevice(self, device):
        self.thread.device = device
        return (self.fine,)

    def work(self):
        """Is done on the current device, by a thread that has its context."""
        assert hasattr(self.thread, "device")
        self.worked.add(self.cudaGetDevice()[1])

    def cudaDeviceGetAttribute(self, attribute, device):
        self.asked.add(device)
        return self.fine, 8 if attribute == self.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else 6

    def cudaStreamCreate(self):
        self.work()
        return self.fine, 7

    def cudaMalloc(self, size):
        assert self.captured is None, "memory is allocated while the stream is captured"
        self.work()
        if size + sum(map(len, self.blocks.values())) > self.limit:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.blocks[ctypes.addressof(block)] = block
        return self.fine, ctypes.addressof(block)

    def cudaFree(self, address):
        assert self.captured is None, "memory is freed while the stream is captured"
        del self.blocks[address]
        return (self.fine,)

    def cudaMemsetAsync(self, address, value, size, stream):
        assert self.captured is None, "zeros are written when the graph is run"
        self.work()
        ctypes.memset(address, value, size)
        return (self.fine,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        assert self.captured is None, "a copy is made when the graph is run"
        self.work()
        ctypes.memmove(to, source, size)
        return (self.fine,)

    def cudaStreamSynchronize(self, stream):
        return (self.fine,)

    # A graph is the list of calls that were made instead of being carried out.

    cudaStreamCaptureMode = real_cuda.cudaStreamCaptureMode
    captured: list[Callable[[], None]] | None = None
    launches = 0

    def cudaStreamBeginCapture(self, stream, mode):
        self.captured = []
        return (self.fine,)

    def cudaGetLastError(self):
        return (self.fine,)

    def cudaStreamEndCapture(self, stream):
        captured, self.captured = self.captured, None
        return self.fine, captured

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs.append(list(graph))
        return self.fine, self.graphs[-1]

    def cudaGraphDestroy(self, graph):
        graph.clear()
        return (self.fine,)

    def cudaGraphLaunch(self, graph, stream):
        assert graph
        self.launches += 1
        for call in graph:
            call()
        return (self.fine,)

    def cudaGraphExecDestroy(self, graph):
        self.graphs[:] = [each for each in self.graphs if each is not graph]
        return (self.fine,)


class Context:
    """Runs the ONNX graph that the "engine" names, on memory by address."""

    SPANS = ((1, 1), (2, 2), (3, PREFILL))

    def __init__(self, path: str, memory: HostMemory, graphs: str | None) -> None:
        self.memory, self.graphs, self.scratch = memory, graphs, None
        self.session = onnxruntime.InferenceSession(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index, stream):
        self.memory.profiles.add(index)
        self.span = self.SPANS[index // self.memory.windows]
        if self.memory.module == "tensorrt_rtx":  # which captures by itself
            assert self.graphs == ("none" if self.span[1] == PREFILL else "whole graph")
        return True

    def set_device_memory(self, address, size):
        assert size == len(self.memory.blocks[address]) == SCRATCH
        self.scratch = address

    def is_stream_capturable(self, stream):
        return self.graphs == "whole graph"

    def set_input_shape(self, name, shape):
        self.memory.told += 1
        self.shapes[name] = shape
        return name != "input_ids" or (self.span[0] <= shape[1] <= self.span[1] and shape[0] <= 2)

    def set_tensor_address(self, name, address):
        self.memory.told += 1
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        vocabulary, hidden = (n.shape[-1] for n in self.session.get_outputs()[:2])
        if name == "logits":
            return (*self.shapes["logits_index"], vocabulary)
        return (*self.shapes["input_ids"], hidden)

    def execute_async_v3(self, stream):
        self.memory.work()
        assert self.scratch in self.memory.blocks
        self.memory.lengths.add(self.shapes["input_ids"][1])
        if not self.memory.runs():
            return False
        bound = dict(self.shapes), dict(self.addresses)
        if self.memory.captured is None:
            self._run(*bound)
        else:
            self.memory.captured.append(lambda: self._run(*bound))
        return True

    def _run(self, shapes, addresses):
        def memory(name, shape, dtype):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            return np.frombuffer((ctypes.c_char * size).from_address(addresses[name]), dtype).reshape(shape)

        feeds = {
            n.name: memory(n.name, shapes[n.name], np.int64 if "int64" in n.type else np.float32)
            for n in self.session.get_inputs()
        }
        names = [n.name for n in self.session.get_outputs()]
        for name, value in zip(names, self.session.run(names, feeds), strict=True):
            memory(name, value.shape, np.float32)[:] = value


def gpu_stand_in(monkeypatch, tmp_path):
    """A machine with a GPU of SM 86, until the test ends."""
    memory = HostMemory(limit=1 << 26)
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(runtime=memory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def engine(data):
        kernels = types.SimpleNamespace(deserialize=memory.kernels.append, serialize=lambda: b"kernels")

        def configuration():
            config: types.SimpleNamespace = types.SimpleNamespace(
                set_execution_context_allocation_strategy=lambda strategy: setattr(config, "strategy", strategy),
                create_runtime_cache=lambda: kernels,
                set_runtime_cache=lambda cache: setattr(config, "cache", cache),
            )
            return config

        def context(config):
            assert config.strategy == "user"
            if memory.module == "tensorrt_rtx":
                assert config.cache is kernels
            else:
                assert not hasattr(config, "cache") and not hasattr(config, "cuda_graph_strategy")
            return Context(data.decode(), memory, getattr(config, "cuda_graph_strategy", None))

        return types.SimpleNamespace(
            create_runtime_config=configuration, create_execution_context=context, device_memory_size_v2=SCRATCH
        )

    package = types.SimpleNamespace(
        __version__=RELEASE,
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None}),
        Runtime=lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda data: engine(data[:])),
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
        CudaGraphStrategy=types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph", DISABLED="none"),
    )
    for module in PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, package)
    spec, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in PACKAGES.values() or spec(name))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: RELEASE if name == "tensorrt-cu13" else version(name)
    )
    return memory
