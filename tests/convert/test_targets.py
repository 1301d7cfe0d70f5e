"""What targets say of themselves before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.random_checkpoint import LLAMA

from llmc.convert.engines.contents import MOST_OFFSETS, widened_bytes
from llmc.convert.families import family_of
from llmc.convert.quantized_weight import QuantSpec
from llmc.convert.targets import PlannedWeights, target, targets
from llmc.errors import InputError
from llmc.runtime.plugins.latent_attention import LatentLaunch, LatentShape, plan

FP8, INT4 = QuantSpec("float8_e4m3fn", (1, 0), False, False, None), QuantSpec("int4", (1, 32), False, False, None)
STORED = 1_000_000
PARAMETERS = {"experts": {FP8: 300, INT4: 20}, "attention": {FP8: 50}, "kv_b_proj": {INT4: 7}}
HEAD = 96 * 64 * 9 // 8
EVERYWHERE = 2 * (96 * 64 + 5 * 64)  # the embedding and five norms, as bfloat16
PROGRAMS = 48 << 20
WIDE = 10  # 7 weights of int4 as bfloat16


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("onnx", {}, STORED),
        ("onnxruntime", {}, 350 + HEAD),
        ("onnxruntime", {"lm_head_bits": None}, 350),
        ("onnxruntime", {"accuracy_level": 1}, 350),
        ("tensorrt", {}, STORED + WIDE),
        ("tensorrt-rtx", {"sm": [89, 120]}, STORED + WIDE + PROGRAMS),
        ("tensorrt-rtx", {"sm": [80, 86]}, STORED + WIDE + PROGRAMS),  # plugins decode FP8
        ("tensorrt-rtx", {"sm": [86, 89]}, 2 * (STORED + WIDE + PROGRAMS)),
        # Experts that all steps compute are bfloat16 everywhere, the rest where there is no FP8.
        ("tensorrt-rtx", {"sm": [86, 89], "plugins": False}, 2 * (STORED + WIDE + 300 + PROGRAMS) + 50),
        ("tensorrt", {"tensor_parallel": 2}, STORED + WIDE + EVERYWHERE),
        ("tensorrt-rtx", {"sm": [89], "tensor_parallel": 2}, STORED + WIDE + EVERYWHERE + 2 * PROGRAMS),
    ],
)
def test_a_target_estimates_its_own_bytes(name: str, options: dict[str, Any], expected: int) -> None:
    chosen, weights = target(name), PlannedWeights(family_of(LLAMA).spec(LLAMA), STORED, PARAMETERS)
    assert chosen.estimate_bytes(weights, chosen.Options(**options)) == expected


@pytest.mark.parametrize(
    ("group", "plugins", "expected"), [(16, True, 400), (32, True, 200), (16, False, 6400 * 3 // 2)]
)
def test_engines_hold_fp4_with_wider_scales_or_as_bfloat16(group: int, plugins: bool, expected: int) -> None:
    fp4 = {"dense_mlp": {QuantSpec("float4_e2m1fn", (1, group), False, False, None): 6400}}
    weights = PlannedWeights(family_of(LLAMA).spec(LLAMA), STORED, fp4)
    assert widened_bytes(weights, plugins, 1, 120) == (expected, False)


@pytest.mark.parametrize(("group", "level", "expected"), [(16, 4, 300 + 75), (32, 4, 300 + 37), (16, 1, 1200)])
def test_onnxruntime_writes_fp4_again(group: int, level: int, expected: int) -> None:
    fp4 = {"experts": {QuantSpec("float4_e2m1fn", (1, group), False, False, None): 300}}
    chosen, weights = target("onnxruntime"), PlannedWeights(family_of(LLAMA).spec(LLAMA), STORED, fp4)
    options = chosen.Options(accuracy_level=level, lm_head_bits=None)
    assert chosen.estimate_bytes(weights, options) == expected


DEEPSEEK_V3 = json.loads((Path(__file__).parents[1] / "data/configs/deepseek-ai--DeepSeek-V3.json").read_text())
CHANNELS, HEADS = 512 + 64, 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 60_000, "prefill": 29_127}, None),
        (
            {"context": 60_000, "prefill": 29_128},
            "a step of 29128 tokens and 128 heads .*; lower `prefill` to 29127, or",
        ),
        ({"context": 60_000, "prefill": 60_000}, "lower `prefill` to 29127, or say `plugins: false`$"),
        ({"context": 60_000, "prefill": 58_000, "tensor_parallel": 2}, None),
        ({"context": 60_000, "prefill": 60_000, "tensor_parallel": 2}, "60000 tokens and 64 heads .* to 58254, or"),
        ({"prefill": 60_000}, None),  # a step has no more tokens than the context, 4,096
        ({"context": 3_728_270}, None),
        ({"context": 3_728_271}, "3728271 cache entries of 576 numbers .*; lower `context` to 3728270, or"),
    ],
)
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_what_the_plugins_do_not_count_is_refused_before_any_work(
    name: str, options: dict[str, Any], message: str | None
) -> None:
    chosen, config = target(name), DEEPSEEK_V3 | {"max_position_embeddings": 1 << 22}
    given, spec = chosen.Options(**options), family_of(config).spec(config)
    if message is None:
        chosen.check(spec, given, {})
        return
    with pytest.raises(InputError, match=message):
        chosen.check(spec, given, {})


def test_the_limit_of_the_plugins_is_the_one_that_is_checked() -> None:
    shape, layout = LatentShape(HEADS, 512, 64, "bf16"), LatentLaunch(64, 32, 128)
    tokens, entries = (MOST_OFFSETS - 1) // CHANNELS // HEADS, (MOST_OFFSETS - 1) // CHANNELS
    plan(shape, layout, 132, 1, tokens, entries)
    for more in ((tokens + 1, entries), (tokens, entries + 1)):
        with pytest.raises(ValueError, match="32 bits"):
            plan(shape, layout, 132, 1, *more)


def test_negative_scales_are_multiplied_by_where_that_is_tested() -> None:
    """TensorRT asks for positive ones; ONNX and llama.cpp do not."""
    found = {name for name in targets.all if target(name).takes_negative_scales}
    assert found == {"genai", "gguf", "onnx", "onnxruntime"}
