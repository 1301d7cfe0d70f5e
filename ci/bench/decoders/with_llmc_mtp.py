"""llmc's `generate` with the drafts of the MTP layer. Argument: see measure.py; there are no logits to compare."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measure import peak_bytes

from llmc.runtime import Generation, Model, load


def timed(model: Model, prompt: str, new: int) -> tuple[Generation, float]:
    start = time.perf_counter()
    return model.generate(prompt, max_new_tokens=new), time.perf_counter() - start


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    start = time.perf_counter()
    model = load(task["model"], backend="onnxruntime", threads=task["threads"])
    timed(model, "a", 1)
    found: dict[str, Any] = {"load": time.perf_counter() - start, "version": version("llmc")}
    found |= {"prefill": [], "decode": [], "tokens_per_step": [], "acceptance": []}
    rows = np.load(task["prompts"]).tolist()
    for number, row in enumerate([rows[0], *rows]):
        long, short = (model.tokenizer.decode(ids) for ids in (row, row[: task["short"]]))
        first, prefill = timed(model, long, 1)
        _, before = timed(model, short, 1)
        answer, seconds = timed(model, short, task["new"] + 1)
        if number:  # the first prompt is taken once more, for warming up
            decoded = len(answer.token_ids) - 1  # fewer than asked for where the text has ended
            found["prefill"].append(first.prompt_tokens / prefill)
            found["decode"].append(decoded / (seconds - before))
            found["tokens_per_step"].append(decoded / answer.steps)
            found["acceptance"].append(answer.accepted / answer.drafted)
    found["peak"] = peak_bytes()
    Path(task["result"]).write_text(json.dumps(found))
