"""llmc, one token a step. Argument: see measure.py."""

from __future__ import annotations

import numpy as np
from measure import main
from numpy.typing import NDArray

from llmc.runtime import load


class Llmc:
    def __init__(self, path: str, threads: int, longest: int) -> None:
        self.backend = load(path, backend="onnxruntime", threads=threads, speculative=False).backend

    def start(self, prompt: NDArray[np.int64]) -> None:
        self.cache, self.position = self.backend.new_cache(1), 0
        width = self.backend.max_prefill_tokens
        for first in range(0, len(prompt), width):
            part = prompt[first : first + width]
            self.token = self._forward(part, [len(part) - 1])[0].argmax()

    def step(self) -> None:
        self.token = self._forward(np.array([self.token]), [0])[0].argmax()

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.cache, self.position = self.backend.new_cache(1), 0
        parts = [
            ids[first : first + self.backend.max_prefill_tokens]
            for first in range(0, len(ids), self.backend.max_prefill_tokens)
        ]
        return np.concatenate([self._forward(part, range(len(part))) for part in parts])

    def traffic(self) -> dict[str, float]:
        return {}  # the graph says it: see onnx_traffic.py

    def _forward(self, ids: NDArray[np.int64], wanted: range | list[int]) -> NDArray[np.float32]:
        index, position = np.array([wanted], dtype=np.int64), np.array([self.position])
        logits, _ = self.backend.forward("main", self.cache, ids[None], position, index)
        self.position += len(ids)
        return logits[0]


if __name__ == "__main__":
    main("llmc", Llmc)
