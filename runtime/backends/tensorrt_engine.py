"""The engines of a model, by TensorRT-RTX or TensorRT, on a GPU that is driven through cuda-python."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmc.errors import InputError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import (
    CLOSED,
    BoolArray,
    FloatArray,
    Graph,
    Hidden,
    ImageFeatures,
    IntArray,
    image_inputs,
    require_room,
    step_inputs,
)
from llmc.runtime.backends.built_engines import BuiltEngine
from llmc.runtime.backends.cuda_device import Device
from llmc.runtime.backends.loaded_engine import EngineCache, LoadedEngine
from llmc.runtime.backends.vision_tower import VisionTower
from llmc.tensorrt_package import TensorRTPackage


class EngineBackend:
    """engines: of graph "main" and, where the model has it, "mtp". device: the GPU's number; None: the current one."""

    def __init__(
        self,
        package: TensorRTPackage,
        artifact: Artifact,
        engines: Mapping[Graph, BuiltEngine],
        device: int | None = None,
    ) -> None:
        main = engines["main"].description
        self.context, self.batch = main.context, main.batch
        self.original_context = artifact.manifest.model.original_context
        self.max_prefill_tokens = max(profile.tokens[1] for profile in main.profiles)
        # The engine's memory is that of its profiles.
        self.max_attention_scores = self.batch * self.max_prefill_tokens * self.context
        self.has_mtp = "mtp" in engines
        self._width = next((each.shape[-1] for each in main.inputs if each.name == "image_features"), 0)
        self._tower = VisionTower(
            artifact, self._width, None, "CPUExecutionProvider"
        )  # the GPU's memory is the engine's
        self.has_vision = self._tower.available
        self._device = Device(device)
        self._scratch: dict[str, int] = {}
        weakref.finalize(self, self._device.drop, self._scratch)
        with self._device.used():
            self._engines = {
                graph: LoadedEngine(package, artifact, self._device, each) for graph, each in engines.items()
            }
            size = max(1, *(engine.scratch_bytes for engine in self._engines.values()))
            self._scratch["scratch"] = address = self._device.zeros(size)
            for engine in self._engines.values():
                engine.scratch = address, size
        kinds = [kind for engine in self._engines.values() for kind in engine.caches.values()]
        self.cache_bytes = sum(shape[1] * shape[3] * np.dtype(dtype).itemsize for shape, dtype in kinds)

    def give_to_contexts(self, give: Callable[[Any], None]) -> None:
        """Call `give` with every context of the engines before its first use."""
        for engine in self._engines.values():
            engine.prepare = give

    def new_cache(self, batch: int) -> EngineCache:
        cache = EngineCache(batch)
        weakref.finalize(cache, self._device.drop, cache.buffers)
        with self._device.used():
            for name, size in self._row_bytes().items():
                cache.buffers[name] = self._device.zeros(batch * size)
        return cache

    def rows(self, cache: EngineCache, first: int, count: int) -> EngineCache:
        addresses = {name: cache.buffers[name] + first * size for name, size in self._row_bytes().items()}
        return EngineCache(count, addresses, cache)

    def trim(self, cache: EngineCache, length: int) -> None:
        """Nothing: an engine's cache has one length."""

    def copy(self, source: EngineCache, rows: Sequence[int], length: int, target: EngineCache) -> None:
        """Whole rows: entries behind `length` are not seen."""
        with self._device.used():
            for name, size in self._row_bytes().items():
                for row, taken in enumerate(rows):
                    self._device.copy(target.buffers[name] + row * size, source.buffers[name] + taken * size, size)

    def _row_bytes(self) -> dict[str, int]:
        """Of each cache input of either graph."""
        caches = [item for engine in self._engines.values() for item in engine.caches.items()]
        return {name: int(np.prod(shape[1:])) * np.dtype(dtype).itemsize for name, (shape, dtype) in caches}

    def forward(
        self,
        graph: Graph,
        cache: EngineCache,
        input_ids: IntArray,
        cache_position: IntArray,
        logits_index: IntArray,
        hidden: Hidden | None = None,
        long: BoolArray | None = None,
        images: ImageFeatures | None = None,
    ) -> tuple[FloatArray, Hidden | None]:
        require_room(cache_position, input_ids, self.context)
        inputs = step_inputs(input_ids, cache_position, logits_index, hidden, long, self.original_context)
        if self._width and graph == "main":
            inputs |= image_inputs(images, self._width)
        with self._device.used():  # buffers and contexts are shared
            if graph not in self._engines:
                raise InputError(CLOSED)
            found = self._engines[graph].run(inputs, cache)
        return found["logits"], found.get("hidden")

    def capturable(self) -> dict[str, bool]:
        """Whether steps that were made can be captured as CUDA graphs, by graph and profile."""
        with self._device.used():
            return {
                f"{graph}, {least} to {most} tokens, {window} entries": found
                for graph, engine in self._engines.items()
                for (least, most, window), found in engine.capturable().items()
            }

    def image_features(self, pixels: FloatArray) -> FloatArray:
        return self._tower.features(pixels)

    def close(self) -> None:
        self._tower.close()
        with self._device.used():
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
            self._device.free(self._scratch)
