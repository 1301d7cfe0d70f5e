from pathlib import Path

import pytest
from support.random_checkpoint import DEEPSEEK_V3, random_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError
from llmc.quant.assign import Rule, assign, linear_modules


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(
        random_checkpoint(tmp_path_factory.mktemp("assign"), DEEPSEEK_V3 | {"moe_intermediate_size": 64})
    )


def test_first_match_wins_and_the_rest_keeps_its_precision(checkpoint):
    rules = [Rule(r"re:.*\.2\.mlp\.experts\..*\.up_proj", "fp8-channel", "rtn"), Rule("experts", "int4-g64")]
    assigned = assign(checkpoint, rules)
    assert assigned["model.layers.2.mlp.experts.0.up_proj"].scheme.name == "fp8-channel"
    assert assigned["model.layers.2.mlp.experts.0.down_proj"].scheme.name == "int4-g64"
    assert len(assigned) == 2 * 8 * 3  # the MTP layer's experts are `mtp`
    assert set(assigned) < set(linear_modules(checkpoint))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("expert", "int4-g64")], "'expert' is not a role that can be quantized; use one of experts"),
        ([Rule("router", "int4-g64")], "'router' is not a role that can be quantized"),
        ([Rule("experts", "int4-g64", "awq")], "unknown method 'awq'; known: gptq, gptaq, yaqa, rtn"),
        ([Rule("re:(", "int4-g64")], "no regular expression"),
        ([Rule("experts", "int4-g64"), Rule(r"re:.*\.1\.mlp\.experts.*", "fp8-block")], "matches nothing"),
        (
            [Rule("experts", "int4-g128")],
            r"experts\.0\.\w+_proj\.weight has 64 inputs, no multiple of 128; use int4-g32 or",
        ),
    ],
)
def test_rules_that_do_not_fit(checkpoint, rules, message):
    with pytest.raises(InputError, match=message):
        assign(checkpoint, rules)


def test_patterns_are_matched_in_time(checkpoint):
    with pytest.raises(InputError, match="takes too long to match"):
        assign(checkpoint, [Rule(r"re:(.*?\w){20}[A-Z]", "int4-g32")])


@pytest.mark.parametrize("match", ["re:.*experts.0.*", r"re:.*layers.1.mlp.experts.[0-3].down_proj"])
@pytest.mark.parametrize("rest", [[], [Rule("experts", "int8-g32")]])
def test_experts_of_a_layer_are_alike(tmp_path: Path, match: str, rest: list[Rule]) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, DEEPSEEK_V3 | {"moe_intermediate_size": 32}))
    with pytest.raises(InputError, match="experts of a layer lie in one stack"):
        assign(checkpoint, [Rule(match, "int4-g32"), *rest])
    assign(checkpoint, [Rule("re:.*experts.*_proj", "int4-g32")])
