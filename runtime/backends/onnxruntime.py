"""ONNX Runtime: caches are bound as input and output at once, and written in place.

`onnxruntime` is its CPU provider; `onnxruntime:NAME` any other execution provider that is installed, say
`onnxruntime:cuda` or `onnxruntime:openvino`, with the CPU for what that one cannot do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmc.errors import InputError, MachineError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import FloatArray, Graph, Hidden, IntArray, step_inputs

NAME = "onnxruntime"
PREFERENCE = 0
_CPU = "CPUExecutionProvider"
_BATCH, _PREFILL, _SCORES = 32, 256, 1 << 22  # bound the memory that a step takes
_NEEDED = (1, 32)  # the first release with all operators of the graphs
_FIRST_CAPACITY = 256
_STEP = 64  # attention runs over whole steps of the cache, not over what is never written


def unavailable(artifact: Artifact, provider: str | None = None) -> str | None:
    if artifact.target_file(NAME, "main") is None:
        return "the artifact has no onnxruntime graph; add `onnxruntime` to the recipe's targets"
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package is not installed; pip install 'llmc[cpu]'"
    if (installed := _version()) < _NEEDED:
        needed, found = (".".join(map(str, version)) for version in (_NEEDED, installed))
        return f"its graphs need release {needed}, {found} is installed; pip install 'onnxruntime>={needed}'"
    if provider is not None:
        known = _providers()
        if provider.lower() not in known:
            return f"it has no provider {provider!r} here, only {', '.join(known)}; install its package of onnxruntime"
    return None


def start(artifact: Artifact, threads: int | None, provider: str | None = None) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(artifact, threads, _providers()[provider.lower()] if provider else _CPU)


def _version() -> tuple[int, int]:
    import onnxruntime

    major, minor = onnxruntime.__version__.split(".")[:2]
    return int(major), int(minor)


def _providers() -> dict[str, str]:
    """Name for people → ONNX Runtime's own name, of all that this installation has."""
    import onnxruntime

    return {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()}


@dataclass
class Cache:
    """One buffer per cache input of either graph, [B, …, capacity, …] with the capacity at axis 2; and for each graph
    what ONNX Runtime has been told of them, which holds as long as `bound` capacity is enough."""

    batch: int
    capacity: int = 0
    buffers: dict[str, FloatArray] = field(default_factory=dict)
    bindings: dict[Graph, tuple[int, Any]] = field(default_factory=dict)


class OnnxRuntimeBackend:
    def __init__(self, artifact: Artifact, threads: int | None, provider: str) -> None:
        from onnxruntime import OrtValue

        self._value = OrtValue.ortvalue_from_numpy  # on the CPU a view of the array
        self.context, self.batch = artifact.context, _BATCH
        self.prefill, self.scores = _PREFILL, _SCORES
        paths: dict[Graph, Path | None] = {"main": artifact.target_file(NAME, "main")}
        paths["mtp"] = artifact.target_file(NAME, "mtp")
        self._sessions = {graph: _session(path, threads, provider) for graph, path in paths.items() if path}
        self.has_mtp = "mtp" in self._sessions
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

    def new_cache(self, batch: int) -> Cache:
        return Cache(batch)

    def copy(self, source: Cache, rows: Sequence[int], length: int, target: Cache) -> None:
        self._grow(target, length)
        for name, buffer in source.buffers.items():
            target.buffers[name][:, :, :length] = buffer[rows, :, :length]

    def forward(
        self,
        graph: Graph,
        cache: Cache,
        input_ids: IntArray,
        cache_position: IntArray,
        logits_index: IntArray,
        hidden: Hidden | None = None,
    ) -> tuple[FloatArray, Hidden | None]:
        end = int(cache_position.max()) + input_ids.shape[1]
        self._grow(cache, end)
        binding = self._binding(graph, cache, end)
        for name, array in step_inputs(input_ids, cache_position, logits_index, hidden).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        results = {}
        for name, width in self._outputs[graph].items():
            rows = logits_index if name == "logits" else input_ids
            results[name] = np.empty((*rows.shape, width), np.float32)
            binding.bind_ortvalue_output(name, self._value(results[name]))
        try:
            self._sessions[graph].run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            cache.bindings.clear()
            raise MachineError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
        return results["logits"], results.get("hidden")

    def close(self) -> None:
        self._sessions.clear()

    def _binding(self, graph: Graph, cache: Cache, end: int) -> Any:
        """A binding with the caches in it, for steps that end at `end`."""
        bound, binding = cache.bindings.get(graph, (0, None))
        if graph not in self._sessions:
            raise InputError("this model is closed; load it again")
        used = min(-(-end // _STEP) * _STEP, cache.capacity)
        if binding is None or bound != used:
            binding = self._sessions[graph].io_binding()
            for node in self._caches[graph]:
                buffer = cache.buffers[node.name]
                part = buffer[:, :, :used]  # contiguous for one row of one head, as latents are
                value = self._value(part if part.flags.c_contiguous else buffer)
                binding.bind_ortvalue_input(node.name, value)
                binding.bind_ortvalue_output(node.name.replace("past.", "present."), value)
            cache.bindings[graph] = used, binding
        return binding

    def _grow(self, cache: Cache, end: int) -> None:
        """Makes room for `end` tokens: capacity doubles, and what is there is copied."""
        if end > self.context:
            raise InputError(f"{end} tokens do not fit the context of {self.context}; shorten prompt or answer")
        if end <= cache.capacity:
            return
        capacity = max(cache.capacity, _FIRST_CAPACITY)
        while capacity < end:
            capacity *= 2
        capacity = min(capacity, -(-self.context // _STEP) * _STEP)
        cache.bindings.clear()
        for nodes in self._caches.values():
            for node in nodes:
                shape = (cache.batch, node.shape[1], capacity, node.shape[3])
                try:
                    buffer = np.zeros(shape, np.float32)
                except MemoryError as error:
                    raise MachineError(f"no memory for a cache of {capacity} tokens; use a shorter context") from error
                if node.name in cache.buffers:
                    buffer[:, :, : cache.capacity] = cache.buffers[node.name]
                cache.buffers[node.name] = buffer
        cache.capacity = capacity


def _session(path: Path, threads: int | None, provider: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads stay awake from operator to operator, and sleep between passes: others may want the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Weights are laid out once, at load, however large: beyond 1 GiB it would be done anew in every pass.
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", "0")
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(dict.fromkeys([provider, _CPU])))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = " ".join(str(error).split())
        raise MachineError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {reason}") from error
