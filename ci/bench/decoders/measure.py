"""One tool over one model: times, memory and logits, taken the same way for every tool.

Runs inside the tool's own virtual environment; needs numpy alone. The argument of the script that calls `main` is the
path of a task in JSON: `model`, `threads`, `prompts` and `text` (token ids, .npy), `short` (tokens of the prompt that
decoding starts from), `new` (tokens to decode), `result` (JSON) and `logits` (.npy, or null), to be written.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Decoder(Protocol):
    """A loaded model with room for one sequence."""

    def start(self, prompt: NDArray[np.int64]) -> None:
        """Forgets what was, takes the prompt and chooses the most likely token."""

    def step(self) -> None:
        """Feeds the token that was chosen and chooses the next."""

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[L, V]: what is said after each of these tokens."""

    def traffic(self) -> dict[str, float]:
        """What the tool itself can say about `weights` and `cache`: bytes read per token, and per token that lies in
        the cache. Called at the very end."""


def main(package: str, load: Callable[[str, int, int], Decoder]) -> None:
    """`load` takes the model's path, threads, and the most tokens of a sequence."""
    task = json.loads(Path(sys.argv[1]).read_text())
    prompts, text = np.load(task["prompts"]), np.load(task["text"])
    longest = max(prompts.shape[1], text.shape[1], task["short"] + task["new"] + 1)
    start = time.perf_counter()
    decoder = load(task["model"], task["threads"], longest)
    decoder.start(prompts[0, :1])  # some tools read weights only when they use them
    found: dict[str, Any] = {"load": time.perf_counter() - start, "version": importlib.metadata.version(package)}
    found |= _speed(decoder, prompts, task["short"], task["new"])
    found["peak"] = peak_bytes()
    if task["logits"]:
        np.save(task["logits"], np.stack([decoder.logits(row) for row in text]))
    found |= decoder.traffic()
    Path(task["result"]).write_text(json.dumps(found))


def _speed(decoder: Decoder, prompts: NDArray[np.int64], short: int, new: int) -> dict[str, list[float]]:
    """Tokens per second, one figure per prompt; the first prompt is taken once more, for warming up."""
    prefill, decode = [], []
    for row in (prompts[0], *prompts):
        start = time.perf_counter()
        decoder.start(row)
        prefill.append(len(row) / (time.perf_counter() - start))
        decoder.start(row[:short])
        start = time.perf_counter()
        for _ in range(new):
            decoder.step()
        decode.append(new / (time.perf_counter() - start))
    return {"prefill": prefill[1:], "decode": decode[1:]}


def peak_bytes() -> int:
    """The most memory this process has had in RAM. Not getrusage's ru_maxrss, which a child inherits from the process
    that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
