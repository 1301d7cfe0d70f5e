"""llama.cpp through the C interface of llama-cpp-python, without its samplers. Argument: see measure.py."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import llama_cpp as cpp
import numpy as np
from measure import main
from numpy.typing import NDArray


def open_model(path: str, mtp: bool = False) -> Any:
    cpp.llama_log_set(ctypes.cast(None, cpp.llama_log_callback), ctypes.c_void_p())  # not through Python
    options = cpp.llama_model_default_params()
    options.load_mtp = mtp
    model = cpp.llama_model_load_from_file(path.encode(), options)
    if not model:
        raise SystemExit(1)  # it has said why
    return model


def context_options(threads: int, longest: int) -> Any:
    options = cpp.llama_context_default_params()
    options.n_ctx, options.n_batch = longest, longest
    options.n_threads = options.n_threads_batch = threads
    return options


class LlamaCpp:
    def __init__(self, path: str, threads: int, longest: int) -> None:
        self.path, self.model = Path(path), open_model(path)
        self.context = cpp.llama_init_from_model(self.model, context_options(threads, longest))
        self.vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(self.model))
        self.batch = cpp.llama_batch_init(longest, 0, 1)

    def start(self, prompt: NDArray[np.int64]) -> None:
        self._forget()
        self.token = self._forward(prompt, last_only=True)[0].argmax()

    def step(self) -> None:
        self.token = self._forward([self.token], last_only=True)[0].argmax()

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self._forget()
        return self._forward(ids, last_only=False).copy()

    def traffic(self) -> dict[str, float]:
        """Of the cache: what a saved state grows by; of the weights: what the converter has noted."""
        sizes = []
        for length in (64, 128):
            self.start(np.arange(length))
            sizes.append(cpp.llama_state_seq_get_size(self.context, 0))
        noted = json.loads(self.path.with_suffix(".json").read_text())
        return noted | {"cache": (sizes[1] - sizes[0]) / 64}

    def _forget(self) -> None:
        cpp.llama_memory_clear(cpp.llama_get_memory(self.context), True)
        self.position = 0

    def _forward(self, ids: NDArray[np.int64] | list[int], last_only: bool) -> NDArray[np.float32]:
        """Logits [1 or L, V], a view of llama.cpp's buffer."""
        batch, count = self.batch, len(ids)
        batch.n_tokens = count
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = int(token), self.position + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = not last_only or index == count - 1
        if status := cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode gave {status}")
        self.position += count
        rows = 1 if last_only else count
        return np.ctypeslib.as_array(cpp.llama_get_logits(self.context), (rows, self.vocabulary))


if __name__ == "__main__":
    main("llama_cpp_python", LlamaCpp)
