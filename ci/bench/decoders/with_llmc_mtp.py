"""llmc with the MTP layer's drafts: the loop that `generate` runs, with no token that ends it.

Argument: see measure.py.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import peak_bytes

from llmc.runtime import load
from llmc.runtime.decoding import Decoder, Request
from llmc.runtime.sampling import Sampling


def speak(model: Any, prompt: list[int], new: int) -> tuple[Request, float, float]:
    """What became of the prompt, seconds to the first token and seconds after it."""
    decoder = Decoder(model.backend, 1, Sampling(), model.draft_tokens, frozenset())
    request = Request(prompt, new, np.random.default_rng(0))
    start = time.perf_counter()
    tokens = decoder.speculate(request)
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    return request, first - start, time.perf_counter() - first


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    prompts, short, new = np.load(task["prompts"]).tolist(), task["short"], task["new"]
    start = time.perf_counter()
    model = load(task["model"], backend="onnxruntime", threads=task["threads"])
    speak(model, prompts[0][:1], 1)
    found: dict[str, Any] = {"load": time.perf_counter() - start, "version": version("llmc")}
    found |= {"prefill": [], "decode": [], "steps": [], "acceptance": []}
    for number, row in enumerate([prompts[0], *prompts]):
        _, prefill, _ = speak(model, row, 1)
        request, _, seconds = speak(model, row[:short], new + 1)
        if number:  # the first prompt is taken once more, for warming up
            found["prefill"].append(len(row) / prefill)
            found["decode"].append(new / seconds)
            found["steps"].append(request.steps)
            found["acceptance"].append(request.accepted / request.drafted)
    found["tokens_per_step"] = new / median(found["steps"])
    found["peak"] = peak_bytes()
    Path(task["result"]).write_text(json.dumps(found))
