"""Regular expressions from a config.json or a recipe: as Python's `re` reads them, but none that takes for ever."""

import re

import pytest

from llmc.errors import InputError
from llmc.patterns import Budget, compile_pattern

NAMES = (
    "lm_head",
    "model.layers.3.self_attn.q_proj",
    "model.layers.12.mlp.gate_proj",
    "model.layers.12.mlp.experts.7.up_proj",
    "model.layers.61.mlp.shared_experts.down_proj",
    "a,a,a,",
    "(a)",
    "",
)


@pytest.mark.parametrize(
    "text",
    [
        ".*lm_head",
        ".*self_attn.*",
        r".*mlp\.(gate|up)_proj$",
        r"^(?!.*mlp)",
        r"^(?!.*(?:experts|lm_head)).*$",
        r"model\.layers\.(?:[0-9]|1[0-2])\.(?P<part>mlp|self_attn)\..*proj",
        r".*\.layers\.\d{2,}\.",
        r"(?i)MODEL",
        r"(?i:MODEL)\.layers",
        r".*(?<!gate)_proj$",
        r"(a,)\1*",
        r"(?P<x>a),(?P=x)",
        r"\(?a",
        r"[\w.]+",
        r"(?>model)\.",
        "",
        "(?#nothing)l",
    ],
)
def test_patterns_mean_what_they_mean_to_re(text: str) -> None:
    pattern = compile_pattern(text)
    for name in NAMES:
        assert pattern.match(name) == bool(re.match(text, name)), name
        assert pattern.fullmatch(name) == bool(re.fullmatch(text, name)), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(", "no regular expression"),
        ("*", "no regular expression"),
        (r"\1", "no regular expression"),
        ("\\", "no regular expression"),
        ("(" * 2000 + ")" * 2000, "nested too deep"),
        ("a" * 5000, "5,000 characters"),
        ("((a{65535}){65535}){65535}", "repeats too often"),
        ("(?:a{100}){1000}", "repeats too often"),
        ("(?x)(a{ 99999 }){99999}", "does not know"),
        ("(?:layers){e<=3}", "does not know"),  # another regular expression in `regex` than in `re`
        ("(?R)", "does not know"),
        (r"\p{L}", "does not know"),
        ("(*FAIL)", "does not know"),
        ("[[:alpha:]]", "does not know"),
        ("(?V1)a", "does not know"),
        ("(?L)a", "does not know"),
    ],
)
def test_patterns_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile_pattern(text)


@pytest.mark.parametrize("text", ["(.*?,){30}P", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_match_that_does_not_end_is_ended(text: str) -> None:
    pattern = compile_pattern(text, Budget(0.05))
    with pytest.raises(InputError, match="takes too long to match"):
        pattern.match("a,a,a,a,a,a,a,a,a,a,a,a," * 20 if "," in text else "a" * 300)


def test_patterns_share_what_slow_matches_may_take() -> None:
    """A thousand patterns that each take a little less than the limit would take hours."""
    budget = Budget(0.2)
    first = compile_pattern("(.*?,){4}P", budget)
    with pytest.raises(InputError, match="takes too long"):
        for _ in range(10_000):
            first.match("a," * 60)
    with pytest.raises(InputError, match="takes too long"):
        compile_pattern("(.*?,){5}Q", budget).match("a," * 60)
