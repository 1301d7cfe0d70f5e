"""What stands beside the weights: config.json with every kind of quantization_config, generation_config.json."""

from __future__ import annotations

import tempfile
from pathlib import Path

from damage import damaged_file
from harness import Case, Target
from hypothesis import strategies as st
from small_checkpoints import small_checkpoints

from llmc.job import plan
from llmc.tables import inspect, plan_tables

MEMORY = 8 << 30
MODEL = "model/"
RECIPE = b"model: model\nquantize: [{match: dense_mlp, scheme: int4-g32}, {match: attention, scheme: fp8-channel}]\n"


def target() -> Target:
    with tempfile.TemporaryDirectory() as folder:
        cases = [_damaged(case) for case in small_checkpoints(Path(folder))]
    return Target(st.one_of(cases), _plan)


def _damaged(case: Case) -> st.SearchStrategy[Case]:
    case = {MODEL + name: content for name, content in case.items()} | {"recipe.yaml": RECIPE}
    config = damaged_file(case[MODEL + "config.json"]).map(lambda damaged: case | {MODEL + "config.json": damaged})
    generation = damaged_file(b'{"eos_token_id": [1, 2], "bos_token_id": 0, "temperature": 0.6, "do_sample": true}')
    generated = generation.map(lambda damaged: case | {MODEL + "generation_config.json": damaged})
    return st.one_of(config, config, config, generated)


def _plan(folder: Path) -> None:
    inspect(folder / MODEL)
    plan_tables(plan(folder / "recipe.yaml", folder.parent / "out", memory=MEMORY))
