"""Weights: headers and bytes of safetensors files in every format that llmc reads, and the index."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from damage import damaged_bytes, damaged_file, damaged_json
from harness import Case, Target
from hypothesis import strategies as st
from small_checkpoints import small_checkpoints

from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.tables import inspect

WEIGHTS = "model.safetensors"


def target() -> Target:
    with tempfile.TemporaryDirectory() as folder:
        cases = [_damaged(case) for case in small_checkpoints(Path(folder))]
    return Target(st.one_of(cases), _read)


def _damaged(case: Case) -> st.SearchStrategy[Case]:
    """One checkpoint, its weights damaged."""
    data = case[WEIGHTS]
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(header, WEIGHTS)}).encode()

    def joined(damaged: object) -> Case:
        text = json.dumps(damaged).encode()
        return case | {WEIGHTS: len(text).to_bytes(8, "little") + text + data[end:]}

    headers = damaged_json(header).map(joined)
    return st.one_of(
        headers,
        headers,
        damaged_bytes(data).map(lambda damaged: case | {WEIGHTS: damaged}),
        damaged_bytes(data[:end]).map(lambda damaged: case | {WEIGHTS: damaged + data[end:]}),
        damaged_file(index).map(lambda damaged: case | {INDEX: damaged}),
    )


def _read(folder: Path) -> None:
    inspect(folder)
    checkpoint = Checkpoint.open(folder)
    for name in checkpoint.names():
        checkpoint.tensor(name)
        checkpoint.activations(name.removesuffix(".weight"))
