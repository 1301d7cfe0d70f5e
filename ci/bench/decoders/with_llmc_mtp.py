"""llmc with the drafts of the MTP layer, as `llmc bench` measures it. Argument: see measure.py; there are no logits."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measure import peak_bytes

from llmc.runtime import load
from llmc.runtime.drafts import acceptance, run

if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    start = time.perf_counter()
    model = load(task["model"], backend="onnxruntime", threads=task["threads"])
    model.generate([5], max_new_tokens=1)
    found: dict[str, Any] = {"load": time.perf_counter() - start, "version": version("llmc")}
    found |= {"prefill": [], "decode": [], "tokens_per_step": [], "acceptance": []}
    rows = np.load(task["prompts"]).tolist()
    for number, row in enumerate([rows[0], *rows]):
        read = run(model, [row], 2, model.draft_tokens)
        said = run(model, [row[: task["short"]]], task["new"] + 1, model.draft_tokens)
        if number:  # the first prompt is taken once more, for warming up
            found["prefill"].append(len(row) / read.prefill)
            found["decode"].append(task["new"] / said.decode)
            found["tokens_per_step"].append(task["new"] / said.answers[0].steps)
            found["acceptance"].append(acceptance([said]))
    found["peak"] = peak_bytes()
    Path(task["result"]).write_text(json.dumps(found))
