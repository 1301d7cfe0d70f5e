"""What targets say of themselves before any work."""

from __future__ import annotations

from typing import Any

import pytest
from support.random_checkpoint import LLAMA

from llmc.convert.families import family_of
from llmc.convert.quantized_weight import QuantSpec
from llmc.convert.targets import PlannedWeights, target

FP8, INT4 = QuantSpec("float8_e4m3fn", (1, 0), False, False, None), QuantSpec("int4", (1, 32), False, False, None)
STORED = 1_000_000
PARAMETERS = {"experts": {FP8: 300, INT4: 20}, "attention": {FP8: 50}, "kv_b_proj": {INT4: 7}}
HEAD = 96 * 64 * 9 // 8
EVERYWHERE = 2 * (96 * 64 + 5 * 64)  # the embedding and five norms, as bfloat16
PROGRAMS = 48 << 20


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("onnx", {}, STORED),
        ("onnxruntime", {}, 350 + HEAD),
        ("onnxruntime", {"lm_head_bits": None}, 350),
        ("onnxruntime", {"accuracy_level": 1}, 350),
        ("tensorrt", {}, STORED),
        ("tensorrt-rtx", {"sm": [89, 120]}, STORED + PROGRAMS),
        ("tensorrt-rtx", {"sm": [80, 86]}, STORED + 50 + PROGRAMS),  # FP8 outside of plugins becomes bfloat16
        ("tensorrt-rtx", {"sm": [86, 89]}, 2 * STORED + 50 + 2 * PROGRAMS),
        ("tensorrt-rtx", {"sm": [86, 89], "plugins": False}, 2 * STORED + 350 + 2 * PROGRAMS),
        ("tensorrt", {"tensor_parallel": 2}, STORED + EVERYWHERE),
        ("tensorrt-rtx", {"sm": [89], "tensor_parallel": 2}, STORED + EVERYWHERE + 2 * PROGRAMS),
    ],
)
def test_a_target_estimates_its_own_bytes(name: str, options: dict[str, Any], expected: int) -> None:
    chosen, weights = target(name), PlannedWeights(family_of(LLAMA).spec(LLAMA), STORED, PARAMETERS)
    assert chosen.estimate_bytes(weights, chosen.Options(**options)) == expected
