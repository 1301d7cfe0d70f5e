"""Keys of a budget: what they take, and the line that says what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.budget_recipe import read_fit, read_size
from llmc.errors import InputError
from llmc.recipe import Recipe, json_schema, load_recipe


def read(**changes: Any) -> Recipe:
    return load_recipe({"model": "x", **changes})[0]


def test_what_a_budget_may_be() -> None:
    assert read(size="19GiB").budget == ("size", 19 << 30)
    assert read(size="1.5 MB").budget == ("size", 1_500_000)
    assert read(size=12345).budget == ("size", 12345)
    assert read(bits=3).budget == ("bits", 3.0)
    assert read(fit="24GiB@32K").budget == ("fit", "24GiB@32K")
    assert read().budget is None
    assert read_fit("24 GiB @ 1000") == (24 << 30, 1000)
    assert read_fit("80GB@1M") == (80 * 10**9, 1 << 20)
    assert read_size("3TiB") == 3 << 40


def test_rules_may_leave_a_choice() -> None:
    rules = [
        {"match": "attention", "least": "FP8_BLOCK"},
        {"match": "mtp"},
        {"match": "experts", "scheme": ["W4A16", "as-is"]},
        {"match": "dense_mlp", "scheme": "as-is"},
    ]
    first, second, third, last = read(bits=3, quantize=rules, candidates=["w8a16", "as-is"]).quantize
    assert (first.scheme, first.least) == (None, "fp8-block-dynamic")
    assert (second.scheme, second.least) == (None, None)
    assert third.scheme == ["int4-g128", "as-is"]
    assert last.scheme == "as-is"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "big"}, "recipe: size: write a size as 19GiB or 500MB, not 'big'"),
        ({"size": 0}, "recipe: size: must be greater than 0, not 0"),
        ({"size": True}, "recipe: size: must be a valid integer, not True"),
        ({"bits": "3"}, "recipe: bits: must be a valid number, not '3'"),
        ({"bits": 33}, "recipe: bits: must be less than or equal to 32, not 33"),
        ({"fit": "24GiB"}, "recipe: fit: write a GPU's memory and the tokens of context as 24GiB@32K, not '24GiB'"),
        ({"fit": "24GiB@0"}, "recipe: fit: write a GPU's memory"),
        ({"size": "1GB", "bits": 3}, "recipe: bits: there is a budget already, size: keep one of the two"),
        ({"candidates": ["int4-g64"]}, "recipe: candidates: what to choose from takes a budget: add size, bits or fit"),
        ({"bits": 3, "candidates": []}, "recipe: candidates: an empty list leaves no choice"),
        ({"bits": 3, "candidates": ["int4-g64", "int4-g64"]}, "recipe: candidates[1]: int4-g64 is named twice"),
        ({"bits": 3, "candidates": ["int4-g63"]}, "recipe: candidates[0]: unknown scheme 'int4-g63'; did you mean"),
        ({"bits": 3, "layout": "gptq", "candidates": ["fp8-block"]}, "recipe: candidates[0]: layout gptq has no place"),
        ({"quantize": [{"match": "mtp"}]}, "recipe: quantize[0]: `scheme` is missing"),
        ({"quantize": [{"match": "mtp", "least": "int4"}]}, "recipe: quantize[0].least: a bound is for a budget"),
        (
            {"quantize": [{"match": "mtp", "scheme": ["int4"]}]},
            "recipe: quantize[0].scheme: several schemes are a choice",
        ),
        (
            {"quantize": [{"match": "mtp", "scheme": "as-is"}]},
            "recipe: quantize[0].scheme: as-is is for recipes with a",
        ),
        (
            {"bits": 3, "quantize": [{"match": "mtp", "scheme": 4}]},
            "recipe: quantize[0].scheme: must be a valid string",
        ),
        (
            {"bits": 3, "quantize": [{"match": "mtp", "scheme": [4]}]},
            "recipe: quantize[0].scheme[0]: must be the name of",
        ),
        (
            {"bits": 3, "quantize": [{"match": "mtp", "scheme": "int4", "least": "int4"}]},
            "recipe: quantize[0].least: `sch",
        ),
        ({"bits": 3, "quantize": [{"match": "mtp", "least": "as-is"}]}, "recipe: quantize[0].least: unknown scheme"),
    ],
)
def test_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        read(**changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_schema_has_them() -> None:
    schema = json_schema()
    assert {"size", "bits", "fit", "candidates"} <= schema["properties"].keys()
    rule = schema["$defs"]["Quantize"]
    assert rule["required"] == ["match"]
    assert "as-is" in rule["properties"]["scheme"]["anyOf"][0]["enum"]
    assert "as-is" not in rule["properties"]["least"]["anyOf"][0]["enum"]
