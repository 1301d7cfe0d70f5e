"""ONNX Runtime: caches are bound as input and output at once, and written in place.

`onnxruntime` is its CPU provider; `onnxruntime:NAME` any other execution provider that is installed, say
`onnxruntime:cuda` or `onnxruntime:openvino`, with the CPU for what that one cannot do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError, MachineError
from llmc.extras import install
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import (
    CLOSED,
    BackendFactory,
    BoolArray,
    FloatArray,
    Graph,
    Hidden,
    ImageFeatures,
    IntArray,
    image_inputs,
    step_inputs,
)
from llmc.runtime.backends.vision_tower import VisionTower
from llmc.runtime.linked_data import data_folder

NAME = "onnxruntime"
_CPU = "CPUExecutionProvider"
_BATCH, _PREFILL, _SCORES = 32, 256, 1 << 22  # bound the memory that a step takes
_NEEDED = (1, 32)  # the first release with all operators of the graphs
_FIRST_CAPACITY = 256
_WASTEFUL = 4  # times the capacity that would do
_NUMBERED = {"cuda", "tensorrt", "nvtensorrtrtx", "migraphx", "rocm", "dml"}  # providers with an option `device_id`
_MOST_FOLDED = 1 << 20  # bytes of a constant, where memory is short
# An AttributeProto's name, value and type (INT), as protobuf writes them.
_ROUNDED, _EXACT = (b"\x0a\x0eaccuracy_level\x18" + level + b"\xa0\x01\x02" for level in (b"\x04", b"\x01"))
_STEP = 64  # attention runs over whole steps of the cache, not over what is never written


def _version() -> tuple[int, int]:
    from llmc.runtime.quiet_onnxruntime import onnxruntime

    major, minor = onnxruntime.__version__.split(".")[:2]
    return int(major), int(minor)


def _providers() -> dict[str, str]:
    """Name for people → ONNX Runtime's own name, of all that this installation has."""
    from llmc.runtime.quiet_onnxruntime import onnxruntime

    return {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()}


@dataclass(frozen=True)
class BoundStep:
    """What ONNX Runtime has been told for steps of one shape: where inputs, outputs and the first `used` entries of the
    caches are.
    """

    used: int
    binding: Any
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, FloatArray]


@dataclass
class OnnxRuntimeCache:
    """One buffer per cache input of either graph, [B, …, capacity, …] with the capacity at axis 2.

    Attributes:
        whole, first: what this is rows of, and from which on; `seen` are the buffers that it had when they were cut
    """

    batch: int
    capacity: int = 0
    buffers: dict[str, FloatArray] = field(default_factory=dict)
    whole: OnnxRuntimeCache | None = None
    first: int = 0
    seen: dict[str, FloatArray] | None = None
    # By graph, tokens and logits a row, features of images.
    steps: dict[tuple[Graph, int, int, int], BoundStep] = field(default_factory=dict)


class OnnxRuntimeBackend:
    def __init__(self, artifact: Artifact, threads: int | None, provider: str, device: int | None = None) -> None:
        from llmc.runtime.quiet_onnxruntime import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy  # on the CPU a view of the array
        self.context, self.batch = artifact.context, _BATCH
        self.original_context = artifact.manifest.model.original_context
        self.max_prefill_tokens, self.max_attention_scores = _PREFILL, _SCORES
        self._sessions: dict[Graph, Any] = {}
        self._artifact, self._threads, self._provider, self._device = artifact, threads, provider, device
        self._open()
        self.has_mtp = "mtp" in self._sessions
        shapes = {node.name: node.shape for node in self._sessions["main"].get_inputs()}
        self._width = shapes["image_features"][-1] if "image_features" in shapes else 0
        self._tower = VisionTower(artifact, self._width, threads, provider, device)
        self.has_vision = self._tower.available
        self._caches = {
            graph: [node for node in session.get_inputs() if node.name.startswith("past.")]
            for graph, session in self._sessions.items()
        }
        nodes = [node for nodes in self._caches.values() for node in nodes]
        self.cache_bytes = sum(node.shape[1] * node.shape[3] * np.dtype(np.float32).itemsize for node in nodes)
        self._outputs = {
            graph: {node.name: node.shape[-1] for node in session.get_outputs() if not node.name.startswith("present.")}
            for graph, session in self._sessions.items()
        }

    def _open(self, exact: bool = False) -> None:
        graphs: tuple[Graph, Graph] = ("main", "mtp")
        for graph in graphs:
            if name := self._artifact.target_file(NAME, graph):
                path = self._artifact.graph(name)
                if exact:
                    model = in_float32(self._artifact.read_graph(name))
                    with data_folder(self._artifact, name) as data:
                        session = open_session(path, self._threads, self._provider, False, self._device, model, data)
                else:
                    session = open_session(path, self._threads, self._provider, device=self._device)
                self._sessions[graph] = session
                _check(self._artifact, graph, session)

    @contextmanager
    def exactly(self) -> Iterator[bool]:
        """Within, no activation is rounded to int8, and caches of before are of no use. Whether that is so everywhere:
        only the CPU provider computes in float32 for certain. Sessions are opened anew, and once more at the end: both
        kinds at once would take twice the memory.
        """
        if self._provider != _CPU:
            yield False
            return
        rounded = any(_ROUNDED in self._artifact.read_graph(name) for name in self._graph_names())
        if rounded:
            self._sessions.clear()
            self._open(exact=True)
        yield True
        if rounded:
            self._sessions.clear()
            self._open()

    def _graph_names(self) -> list[str]:
        return [name for graph in self._sessions if (name := self._artifact.target_file(NAME, graph))]

    def new_cache(self, batch: int) -> OnnxRuntimeCache:
        return OnnxRuntimeCache(batch)

    def rows(self, cache: OnnxRuntimeCache, first: int, count: int) -> OnnxRuntimeCache:
        return OnnxRuntimeCache(count, whole=cache, first=first)

    def trim(self, cache: OnnxRuntimeCache, length: int) -> None:
        """Of caches with several rows or heads, attention reads the whole capacity."""
        capacity = self._capacity(_FIRST_CAPACITY, length)
        if cache.capacity >= _WASTEFUL * capacity:
            self._resize(cache, capacity)

    def copy(self, source: OnnxRuntimeCache, rows: Sequence[int], length: int, target: OnnxRuntimeCache) -> None:
        for cache in (target, source):  # both may be rows of one cache, which grows with either
            self._grow(cache, length)
        for name, buffer in source.buffers.items():
            target.buffers[name][:, :, :length] = buffer[rows, :, :length]

    def forward(
        self,
        graph: Graph,
        cache: OnnxRuntimeCache,
        input_ids: IntArray,
        cache_position: IntArray,
        logits_index: IntArray,
        hidden: Hidden | None = None,
        long: BoolArray | None = None,
        images: ImageFeatures | None = None,
    ) -> tuple[FloatArray, Hidden | None]:
        session = self._sessions.get(graph)
        if session is None:
            raise InputError(CLOSED)
        end = int(cache_position.max()) + input_ids.shape[1]
        self._grow(cache, end)
        inputs = step_inputs(input_ids, cache_position, logits_index, hidden, long, self.original_context)
        if self._width and graph == "main":
            inputs |= image_inputs(images, self._width)
        step = self._step(graph, session, cache, end, inputs)
        for name, array in inputs.items():
            step.inputs[name][...] = array
        try:
            session.run_with_iobinding(step.binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise MachineError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
        found = {name: array.copy() for name, array in step.outputs.items()}
        return found["logits"], found.get("hidden")

    def image_features(self, pixels: FloatArray) -> FloatArray:
        return self._tower.features(pixels)

    def close(self) -> None:
        self._sessions.clear()
        self._tower.close()

    def _step(
        self, graph: Graph, session: Any, cache: OnnxRuntimeCache, end: int, inputs: dict[str, NDArray[Any]]
    ) -> BoundStep:
        """For steps like this one, that end at `end`."""
        length, wanted = inputs["input_ids"].shape[1], inputs["logits_index"].shape[1]
        used = min(-(-end // _STEP) * _STEP, cache.capacity)
        key = graph, length, wanted, len(inputs.get("image_features", ()))
        step = cache.steps.get(key)
        if step is None or step.used != used:
            binding = session.io_binding()
            buffers = {node.name: cache.buffers[node.name] for node in self._caches[graph]}
            parts = {name: buffer[:, :, :used] for name, buffer in buffers.items()}
            if all(part.flags.c_contiguous for part in parts.values()):  # of one row of one head, as latents are
                buffers = parts  # all or none: one mask is for all layers
            for node in self._caches[graph]:
                value = self._value(buffers[node.name])
                binding.bind_ortvalue_input(node.name, value)
                binding.bind_ortvalue_output(node.name.replace("past.", "present."), value)
            places = {name: np.empty(array.shape, array.dtype) for name, array in inputs.items()}
            for name, place in places.items():
                binding.bind_ortvalue_input(name, self._value(place))
            lengths = {"logits": wanted, "hidden": length}
            outputs = {
                name: np.empty((cache.batch, lengths[name], width), np.float32)
                for name, width in self._outputs[graph].items()
            }
            for name, place in outputs.items():
                binding.bind_ortvalue_output(name, self._value(place))
            step = cache.steps[key] = BoundStep(used, binding, places, outputs)
        return step

    def _grow(self, cache: OnnxRuntimeCache, end: int) -> None:
        """Makes room for `end` tokens: capacity doubles, and what is there is copied."""
        if end > self.context:
            raise InputError(f"{end} tokens do not fit the context of {self.context}; shorten prompt or answer")
        if cache.whole is not None:
            self._grow(cache.whole, end)
            if cache.seen is not cache.whole.buffers:
                cache.seen, cache.capacity = cache.whole.buffers, cache.whole.capacity
                mine = slice(cache.first, cache.first + cache.batch)
                cache.buffers = {name: buffer[mine] for name, buffer in cache.seen.items()}
                cache.steps.clear()
        elif end > cache.capacity:
            self._resize(cache, self._capacity(max(cache.capacity, _FIRST_CAPACITY), end))

    def _capacity(self, least: int, end: int) -> int:
        while least < end:
            least *= 2
        return min(least, -(-self.context // _STEP) * _STEP)

    def _resize(self, cache: OnnxRuntimeCache, capacity: int) -> None:
        grown, kept = {}, min(capacity, cache.capacity)
        for node in (node for nodes in self._caches.values() for node in nodes):
            try:
                grown[node.name] = np.zeros((cache.batch, node.shape[1], capacity, node.shape[3]), np.float32)
            except MemoryError as error:
                raise MachineError(f"no memory for a cache of {capacity} tokens; use a shorter context") from error
            if node.name in cache.buffers:
                grown[node.name][:, :, :kept] = cache.buffers[node.name][:, :, :kept]
        cache.steps.clear()
        cache.buffers, cache.capacity = grown, capacity


def _check(artifact: Artifact, graph: Graph, session: Any) -> None:
    """InputError unless steps can be given to it: `forward` relies on names and shapes."""
    inputs, outputs = ({node.name: node for node in nodes} for nodes in (session.get_inputs(), session.get_outputs()))
    caches = {name for name in inputs if name.startswith("past.")}
    steps = {"input_ids", "position_ids", "cache_position", "logits_index"}
    if graph == "mtp":
        steps |= {"previous_hidden"}
    elif artifact.target_file(NAME, "vision"):
        steps |= {"image_features", "image_positions"}
    wrong = (inputs.keys() - caches) ^ steps
    wrong |= {"image_features"} & {name for name, node in inputs.items() if type(node.shape[-1]) is not int}
    wrong |= {name for name in caches if [type(each) for each in inputs[name].shape[1::2]] != [int, int]}
    wrong |= {name.replace("past.", "present.") for name in caches} ^ (outputs.keys() - {"logits", "hidden"})
    widths = [node.shape[-1:] for name, node in outputs.items() if not name.startswith("present.")]
    if wrong or not caches or "logits" not in outputs or any(list(map(type, width)) != [int] for width in widths):
        named = f", such as {min(wrong)!r}" if wrong else ""
        raise InputError(f"{artifact.path}: its graph has other inputs and outputs than a model{named}; build it again")
    if (width := outputs["logits"].shape[-1]) != artifact.vocab_size:
        raise InputError(f"{artifact.path}: its graph knows {width} tokens, its manifest {artifact.vocab_size}")


def in_float32(model: bytes) -> bytes:
    """A graph whose products round no activations: the accuracy level of each, an attribute, is 1 in place of 4."""
    return model.replace(_ROUNDED, _EXACT)


def open_session(
    path: Path,
    threads: int | None,
    provider: str,
    frugal: bool = False,
    device: int | None = None,
    model: bytes | None = None,
    data: Path | None = None,
) -> Any:
    """Start a graph.

    Args:
        frugal: Of one that runs seldom and over much at once: its weights are converted in every pass, which takes
            little of the time, and memory is given back behind it.
        device: The GPU's number, for a provider that has several.
        model: What is to be run in place of the file's content.
        data: The folder that its weights are in; default: that of the file.
    """
    from llmc.runtime.quiet_onnxruntime import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads stay awake from operator to operator, and sleep between passes: others may want the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Weights are laid out once, at load, however large: beyond 1 GiB it would be done anew in every pass.
    folded = _MOST_FOLDED if frugal else 0
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(folded))
    options.enable_cpu_mem_arena = options.enable_mem_pattern = not frugal
    options.log_severity_level = 3
    if model is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(data or path.parent)
        )
    if threads:
        options.intra_op_num_threads = threads
    try:
        first = provider if device is None else (provider, {"device_id": str(device)})
        providers = [first] if provider == _CPU else [first, _CPU]
        # What fails is told; falling back would print to standard output and go on elsewhere than was asked for.
        given = str(path) if model is None else model
        return onnxruntime.InferenceSession(given, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = " ".join(str(error).split())
        raise MachineError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {reason}") from error


class OnnxRuntimeFactory(BackendFactory):
    name, preference = NAME, 0

    def unavailable(self, artifact: Artifact, provider: str | None = None, device: int | None = None) -> str | None:
        if artifact.target_file(NAME, "main") is None:
            return "the artifact has no onnxruntime graph; add `onnxruntime` to the recipe's targets"
        if importlib.util.find_spec("onnxruntime") is None:
            return f"the package is not installed; {install('onnxruntime')}"
        if (installed := _version()) < _NEEDED:
            needed, found = (".".join(map(str, version)) for version in (_NEEDED, installed))
            return f"its graphs need release {needed}, {found} is installed; pip install 'onnxruntime>={needed}'"
        if provider is not None:
            known = _providers()
            if provider.lower() not in known:
                return (
                    f"it has no provider {provider!r} here, only {', '.join(known)}; install its package of onnxruntime"
                )
        if device is not None and (provider or "cpu").lower() not in _NUMBERED:
            return (
                f"its provider {provider or 'cpu'} knows no GPU {device}; leave `device` out, or name another provider"
            )
        return None

    def start(
        self, artifact: Artifact, threads: int | None, provider: str | None = None, device: int | None = None
    ) -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(artifact, threads, _providers()[provider.lower()] if provider else _CPU, device)


BACKENDS = (OnnxRuntimeFactory(),)
