"""Recipes: their YAML, and what a plan makes of the ones that are well-formed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from damage import damaged_bytes, damaged_json
from harness import Target
from hypothesis import strategies as st
from support.random_checkpoint import DEEPSEEK_V3, random_checkpoint

from llmc.job import plan

RECIPE: dict[str, Any] = {
    "name": "small",
    "model": "model",
    "calibration": {"text": "builtin:python-docs", "samples": 8, "length": 64, "seed": 1, "experts": "all"},
    "prune": {"method": "ean", "keep": "50%"},
    "quantize": [
        {"match": "experts", "scheme": "int4-g32", "method": "gptq"},
        {"match": "re:.*o_proj", "scheme": "fp8-block"},
    ],
    "kv_cache": "fp8",
    "layout": "compressed-tensors",
    "targets": [
        {"onnxruntime": {}},
        {"onnx": None},
        {"tensorrt-rtx": {"sm": [80, 89], "context": 128, "batch": 2}},
    ],
    "check": {
        "text": "check.txt",
        "tokens": 64,
        "length": 32,
        "gates": {"ppl_increase": "2%", "kl_mean": 0.1, "top1": 0.9},
    },
}
SMALLER = {
    "num_hidden_layers": 2,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
}
MEMORY = 8 << 30


def target() -> Target:
    models = tempfile.TemporaryDirectory()
    model = random_checkpoint(Path(models.name) / "model", DEEPSEEK_V3 | SMALLER)
    recipe = RECIPE | {"model": str(model)}
    trees = damaged_json(recipe).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "replace"))
    text = yaml.safe_dump(recipe).encode()
    cases = st.one_of(trees, trees, damaged_bytes(text)).map(lambda content: {"recipe.yaml": content})

    def run(folder: Path) -> None:
        assert models  # lives as long as this
        plan(folder / "recipe.yaml", folder.parent / "out", memory=MEMORY)

    return Target(cases, run)
