"""ONNX Runtime on the CPU: caches are bound as input and output at once, and written in place."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmc.errors import InputError, MachineError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import FloatArray, Graph, Hidden, IntArray, step_inputs

NAME = "onnxruntime"
PREFERENCE = 0
_BATCH, _PREFILL = 32, 256  # bound the memory that a step takes
_FIRST_CAPACITY = 256
_STEP = 64  # attention runs over whole steps of the cache, not over what is never written


def unavailable(artifact: Artifact) -> str | None:
    if artifact.target_file(NAME, "main") is None:
        return "the artifact has no onnxruntime graph; add `onnxruntime` to the recipe's targets"
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package is not installed; pip install 'llmc[cpu]'"
    return None


def start(artifact: Artifact, threads: int | None) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(artifact, threads)


@dataclass
class Cache:
    """One buffer per cache input of either graph, [B, …, capacity, …] with the capacity at axis 2."""

    batch: int
    capacity: int = 0
    buffers: dict[str, FloatArray] = field(default_factory=dict)


class OnnxRuntimeBackend:
    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        from onnxruntime import OrtValue

        self._value = OrtValue.ortvalue_from_numpy  # on the CPU a view of the array
        self.context, self.batch, self.prefill = artifact.context, _BATCH, _PREFILL
        paths = {graph: artifact.target_file(NAME, graph) for graph in ("main", "mtp")}
        self._sessions = {graph: _session(path, threads) for graph, path in paths.items() if path}
        self.has_mtp = "mtp" in self._sessions
        self._caches = {
            graph: [node for node in session.get_inputs() if node.name.startswith("past.")]
            for graph, session in self._sessions.items()
        }
        self._outputs = {
            graph: [node.name for node in session.get_outputs() if not node.name.startswith("present.")]
            for graph, session in self._sessions.items()
        }

    def new_cache(self, batch: int) -> Cache:
        return Cache(batch)

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
        binding = self._sessions[graph].io_binding()
        for name, array in step_inputs(input_ids, cache_position, logits_index, hidden).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs[graph]:
            binding.bind_output(name)
        for node in self._caches[graph]:
            buffer = cache.buffers[node.name]
            used = buffer[:, :, : -(-end // _STEP) * _STEP]  # contiguous for one row of one head, as latents are
            value = self._value(used if used.flags.c_contiguous else buffer)
            binding.bind_ortvalue_input(node.name, value)
            binding.bind_ortvalue_output(node.name.replace("past.", "present."), value)
        self._sessions[graph].run_with_iobinding(binding)
        # Results come in the order in which outputs were bound.
        found = dict(zip(self._outputs[graph], binding.get_outputs(), strict=False))
        return found["logits"].numpy(), found["hidden"].numpy() if "hidden" in found else None

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

    def close(self) -> None:
        self._sessions.clear()


def _session(path: Path, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores may be shared
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        reason = " ".join(str(error).split())
        raise MachineError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {reason}") from error
