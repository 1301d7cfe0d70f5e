"""Choosing an engine, and driving one. No machine of CI has a GPU: CUDA is played by host memory, the engine by ONNX
Runtime, and what is tested is everything in between."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import driver as real_driver
from cuda.bindings import runtime as real_cuda
from support.listed_files import list_files

import llmc.runtime.backends.tensorrt_engine as backend
from llmc.contracts.kernels import CompiledFor, KernelSetDescription, StoredKernel
from llmc.errors import InputError, MachineError
from llmc.runtime import load
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins import tensorrt as plugins
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.quiet_onnxruntime import onnxruntime

RELEASE = importlib.metadata.version("tensorrt-rtx-cu13")
PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
PREFILL = 48
PROMPTS = ["def add(a, b):\n    return", "import os\n" * 20, "class"]


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
    files = {}
    for graph in manifest["targets"]["onnxruntime"]["files"].keys() & {"main", "mtp"}:
        onnx = manifest["targets"]["onnxruntime"]["files"][graph]
        description = describe(graph, artifact / onnx, [80, 86], 160) | changes
        for name, text in ((f"{graph}.engine", str(artifact / onnx)), (f"{graph}.json", json.dumps(description))):
            (artifact / name).write_text(text)
            files[name] = name
            manifest["files"][name] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    manifest["targets"][target] = {"files": files}
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    return artifact


@pytest.mark.skipif(not isinstance(backend.compute_capability(), str), reason="there is a GPU here")
def test_without_a_gpu_the_cpu_runs_it_and_the_reason_is_told(dense, tmp_path):
    artifact = add_engines(dense, tmp_path)
    with pytest.raises(MachineError, match=r"tensorrt-rtx: there is no GPU that CUDA can use \(.+\)$"):
        load(artifact, backend="tensorrt-rtx")
    with load(artifact) as model:
        assert model.backend_info.startswith("onnxruntime (tensorrt-rtx: there is no GPU")


def test_why_engines_cannot_run(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "compute_capability", lambda: 90)

    def reason(artifact):
        with pytest.raises(MachineError) as caught:
            load(artifact, backend="tensorrt-rtx")
        return str(caught.value)

    assert "the artifact has no engines; add `tensorrt-rtx`" in reason(dense)
    assert "engines are for SM 80, 86, this GPU is SM 90" in reason(add_engines(dense, tmp_path / "a"))
    monkeypatch.setattr(backend, "compute_capability", lambda: 86)
    other = add_engines(dense, tmp_path / "b", release="1.2.3")
    assert f"need release 1.2.3, {RELEASE} is installed; pip install tensorrt-rtx-cu13==1.2.3" in reason(other)
    assert "engines are for 2 GPUs together" in reason(add_engines(dense, tmp_path / "d", ranks=2))
    broken = add_engines(dense, tmp_path / "c")
    (broken / "main.json").write_text((broken / "main.json").read_text().replace('"batch"', '"Batch"'))
    list_files(broken, "main.json")
    with pytest.raises(InputError, match=r"main\.json: broken"):
        load(broken)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorrt_rtx" else found(name))
    assert re.search(r"pip install .*\[rtx\]'$", reason(other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "other.engine"}, r"main\.json: refers to 'other\.engine', which llmc\.json does not list"),
        ({"engine": "../main.engine"}, r"main\.json: broken \(engine: .*\)"),
        ({"plugins": ["llmc.LatentAttention"], "kernels": "other.kernels"}, r"refers to 'other\.kernels'"),
        ({"plugins": ["llmc.LatentAttention"]}, r"main\.json: broken \(plugins without kernels\)"),
        ({"sm": "86"}, r"main\.json: broken \(sm: "),
        ({"ranks": 2, "rank": 2}, r"main\.json: broken \(rank 2 of 2\)"),
        ({"batch": 0}, r"main\.json: broken \(batch: "),
        ({"profiles": []}, r"main\.json: broken \(profiles: "),
        ({"inputs": []}, r"main\.json: broken \(no input "),
        ({"inputs": [{"name": "past.0.key", "dtype": "bf16", "shape": [1]}]}, "caches have four axes"),
    ],
)
def test_descriptions_that_describe_no_engine_of_the_artifact(dense, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(add_engines(dense, tmp_path, **changes), backend="tensorrt-rtx")


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


def test_engines_whose_kernels_are_for_another_architecture(dense, tmp_path, monkeypatch):
    """SM 103 and 121 load none that were compiled for 100 and 120."""
    monkeypatch.setattr(backend, "compute_capability", lambda: 121)
    artifact = add_engines(dense, tmp_path, sm=[120, 121])
    add_kernels(artifact, 120)
    with pytest.raises(MachineError, match=r"AppendFloat8: its kernels are for SM 120, this GPU is SM 121; build agai"):
        load(artifact, backend="tensorrt-rtx")
    with load(artifact) as model:
        assert model.backend_info.startswith("onnxruntime (tensorrt-rtx: AppendFloat8: its kernels are for SM 120")


def test_kernels_that_the_driver_does_not_load_are_told_when_the_engine_is(dense, tmp_path, gpu, monkeypatch):
    artifact = add_engines(dense, tmp_path)
    add_kernels(artifact, 86)
    driver = types.SimpleNamespace(
        CUresult=real_driver.CUresult,
        cuModuleLoadData=lambda cubin: (real_driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(runtime=gpu, driver=driver))
    monkeypatch.setitem(plugins._creators, "tensorrt_rtx", [])
    monkeypatch.setattr(sys.modules["tensorrt_rtx"], "__name__", "tensorrt_rtx", raising=False)
    with pytest.raises(MachineError, match=r"_append, a kernel for SM 86: cuModuleLoadData says CUDA_ERROR_NO_BINARY"):
        load(artifact, backend="tensorrt-rtx")


class HostMemory:
    """The functions of cuda.bindings.runtime that the backend calls. New memory holds NaN."""

    cudaError_t, cudaMemcpyKind = real_cuda.cudaError_t, real_cuda.cudaMemcpyKind
    cudaDeviceAttr = real_cuda.cudaDeviceAttr
    fine = real_cuda.cudaError_t.cudaSuccess

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.graphs: list[list] = []  # that can be launched

    def cudaGetErrorString(self, error):
        return real_cuda.cudaGetErrorString(error)

    def cudaGetDeviceCount(self):
        return self.fine, 1

    def cudaGetDevice(self):
        return self.fine, 0

    def cudaDeviceGetAttribute(self, attribute, device):
        return self.fine, 8 if attribute == self.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else 6

    def cudaStreamCreate(self):
        return self.fine, 7

    def cudaMalloc(self, size):
        if size + sum(map(len, self.blocks.values())) > self.limit:
            return self.cudaError_t.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.blocks[ctypes.addressof(block)] = block
        return self.fine, ctypes.addressof(block)

    def cudaFree(self, address):
        del self.blocks[address]
        return (self.fine,)

    def cudaMemsetAsync(self, address, value, size, stream):
        ctypes.memset(address, value, size)
        return (self.fine,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        ctypes.memmove(to, source, size)
        return (self.fine,)

    def cudaStreamSynchronize(self, stream):
        return (self.fine,)

    # A graph is the list of calls that were made instead of being carried out.

    cudaStreamCaptureMode = real_cuda.cudaStreamCaptureMode
    captured = None
    launches = 0

    def cudaStreamBeginCapture(self, stream, mode):
        self.captured = []
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

    def __init__(self, path: str, memory: HostMemory) -> None:
        self.memory = memory
        self.session = onnxruntime.InferenceSession(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index, stream):
        self.memory.profiles.add(index)
        self.span = self.SPANS[index // self.memory.windows]
        return True

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return name != "input_ids" or (self.span[0] <= shape[1] <= self.span[1] and shape[0] <= 2)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        vocabulary, hidden = (n.shape[-1] for n in self.session.get_outputs()[:2])
        if name == "logits":
            return (*self.shapes["logits_index"], vocabulary)
        return (*self.shapes["input_ids"], hidden)

    def execute_async_v3(self, stream):
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


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with a GPU of SM 86."""
    memory = HostMemory(limit=1 << 26)
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(runtime=memory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory.kernels = []  # what was read of earlier runs
    memory.module = "tensorrt_rtx"
    memory.profiles, memory.windows = set(), 1

    def engine(data):
        kernels = types.SimpleNamespace(deserialize=memory.kernels.append, serialize=lambda: b"kernels")
        config = types.SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            create_runtime_cache=lambda: kernels,
            set_runtime_cache=lambda cache: setattr(config, "cache", cache),
        )

        def context(given):
            assert given is config
            if memory.module == "tensorrt_rtx":
                assert config.cache is kernels and config.cuda_graph_strategy == "whole graph"
            else:
                assert not hasattr(config, "cache")
            return Context(data.decode(), memory)

        return types.SimpleNamespace(create_runtime_config=lambda: config, create_execution_context=context)

    package = types.SimpleNamespace(
        __version__=RELEASE,
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None}),
        Runtime=lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda data: engine(data[:])),
        ExecutionContextAllocationStrategy=types.SimpleNamespace(ON_PROFILE_CHANGE=1),
        CudaGraphStrategy=types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"),
    )
    for module in PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, package)
    spec, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in PACKAGES.values() or spec(name))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: RELEASE if name == "tensorrt-cu13" else version(name)
    )
    return memory


@pytest.mark.parametrize("target", PACKAGES)
def test_an_engine_is_driven_like_any_backend(trained, tmp_path, gpu, target):
    """Prefill in pieces, decode, drafts that are refused, batches: the same tokens as from ONNX Runtime itself."""
    gpu.module = PACKAGES[target]
    artifact = add_engines(trained, tmp_path, target)
    with load(artifact, backend="onnxruntime") as model:
        alone = [model.generate(prompt, max_new_tokens=40) for prompt in PROMPTS]
        together = model.generate(PROMPTS[:2], max_new_tokens=12)
    with load(artifact) as model:
        assert model.backend_info == target and model.backend.max_prefill_tokens == PREFILL and model.backend.batch == 2
        assert len(model.tokenizer.encode(PROMPTS[1]).ids) > PREFILL
        assert [model.generate(prompt, max_new_tokens=40) for prompt in PROMPTS] == alone
        assert sum(answer.accepted for answer in alone) > 10
        assert [answer.token_ids for answer in model.generate(PROMPTS[:2], max_new_tokens=12)] == [
            a.token_ids for a in together
        ]
        with pytest.raises(InputError, match="do not fit the context of 160"):
            model.generate("a", max_new_tokens=200)
        assert len(gpu.graphs) <= 2 * backend._MOST_GRAPHS
    gc.collect()
    assert not gpu.blocks and not gpu.graphs  # caches and buffers are given back
    assert (gpu.launches > 30) == (target == "tensorrt")  # TensorRT-RTX captures what it runs by itself


def test_the_shortest_window_that_suffices_is_taken(trained, tmp_path, gpu):
    gpu.windows = 2
    profiles = [{"tokens": tokens, "window": n} for tokens in ([1, 1], [2, 2], [3, PREFILL]) for n in (20, 160)]
    with load(add_engines(trained, tmp_path, profiles=profiles), speculative=False) as model:
        model.generate("import os\n", max_new_tokens=8)
        assert gpu.profiles == {0, 4}
        model.generate("import os\n", max_new_tokens=40)
        assert gpu.profiles == {0, 1, 4}


def test_an_engine_that_was_changed_is_not_read(trained, tmp_path, gpu):
    artifact = add_engines(trained, tmp_path, sha256="0" * 64)
    with pytest.raises(InputError, match=r"\.engine: not the engine that was built; download it again"):
        load(artifact, backend="tensorrt-rtx")


def test_kernels_that_the_gpu_compiled_are_kept_for_the_next_time(trained, tmp_path, gpu):
    artifact = add_engines(trained, tmp_path)
    for read in ([], [b"kernels", b"kernels"]):  # of the main and the MTP engine
        gpu.kernels.clear()
        with load(artifact) as model:
            assert gpu.kernels == read
            model.generate("a", max_new_tokens=8)
    assert len(list((tmp_path / "cache/llmc/kernels").iterdir())) == 2
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    with load(artifact) as model:
        assert model.generate("a", max_new_tokens=2).token_ids  # and closing is no error either


def test_sessions_of_an_engine(trained, tmp_path, gpu):
    with load(add_engines(trained, tmp_path)) as model:
        session = model.session(PROMPTS[0])
        other, longer = session.fork(), PROMPTS[0] + " a + b\n"
        answers = [each.generate(longer, max_new_tokens=10) for each in (model, session, other)]
        assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids and answers[1].cached_tokens > 5
        together = session.generate([longer, PROMPTS[0]], max_new_tokens=5)
        assert [a.token_ids for a in together] == [
            a.token_ids for a in model.generate([longer, PROMPTS[0]], max_new_tokens=5)
        ]


def test_no_memory_on_the_gpu(trained, tmp_path, gpu):
    gpu.limit = 100_000
    with (
        load(add_engines(trained, tmp_path)) as model,
        pytest.raises(MachineError, match="bytes left on the GPU; build with a smaller `context`"),
    ):
        model.generate("a", max_new_tokens=2)


def test_images_with_an_engine(seeing, tmp_path, gpu):
    """The engine takes features, or none, and ONNX Runtime makes them: the same tokens as without an engine."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    asked = [("What?", [image]), ("What?", [])]
    with load(seeing) as model:
        expected = [model.generate(text, images=shown, max_new_tokens=6).token_ids for text, shown in asked]
    with load(add_engines(seeing, tmp_path), backend="tensorrt-rtx") as model:
        assert model.backend.has_vision
        found = [model.generate(text, images=shown, max_new_tokens=6).token_ids for text, shown in asked]
    assert found == expected and found[0] != found[1]
    with pytest.raises(InputError, match="closed"):
        model.backend.image_features(image)
