"""YAML of others: read as what stands there, refused before it takes time or memory."""

import pytest

from llmc.plain_yaml import Problem, read


def test_words_become_what_yaml_takes_them_for() -> None:
    value, lines = read("a: 1\nb:\n- [2.5, x, true, ~]\n- 'no'\nc: 2026-02-30")
    assert value == {"a": 1, "b": [[2.5, "x", True, None], "no"], "c": "2026-02-30"}
    assert lines == {
        (): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 0, 0): 3, ("b", 0, 1): 3, ("b", 0, 2): 3, ("b", 0, 3): 3,
        ("b", 1): 4, ("c",): 5,
    }  # fmt: skip
    assert read("a: 1\nb: [~, no, 2026-02-30]", typed=False)[0] == {"a": "1", "b": ["~", "no", "2026-02-30"]}
    assert read("")[0] is None


@pytest.mark.parametrize(
    ("text", "line", "location", "said"),
    [
        ("a: 1\nb: &x [1]", 2, ("b",), "anchors and aliases"),
        ("a: 1\nb: *x", 2, ("b",), "anchors and aliases"),
        ("a: 1\n*x : 1", 2, (), "anchors and aliases"),
        ("a:\n- !!timestamp x", 2, ("a", 0), "tags"),
        ("a: !!python/object/apply:os.system [id]", 1, ("a",), "tags"),
        ("!!map {a: 1}", 1, (), "tags"),
        ("!!str a: 1", 1, (), "tags"),
        ("a: 1\na: 2", 2, ("a",), "there twice"),
        ("? [a]\n: 1", 1, (), "a key is one word"),
        ("a: 1\n---\nb: 1", 2, (), "second document"),
        ("a:\n b: [x\n", 2, (), "not valid YAML"),
        ("a: 1\nb: \t- x", 2, (), "not valid YAML"),
        ("a: 1\nb: x\0", 2, (), r"'\\x00'"),
        ("a: 1\nb: x\x1b", 2, (), r"'\\x1b'"),
        ("a: 1\nb: \ud800", 2, (), r"'\\ud800'"),
        ('a: "x\\0"', 1, ("a",), r"'\\x00'"),
        ('a: "\\u202e"', 1, ("a",), r"'\\u202e'"),
        ('"\\e": 1', 1, (), r"'\\x1b'"),
        ("a: |\n  x\n", 1, ("a",), r"'\\n'"),
        ("a: 0x_", 1, ("a",), "no number"),
        ("a: " + "9" * 5000, 1, ("a",), "a number of 5,000 digits"),
        ("a: " + "x" * 9000, 1, ("a",), "a word of 9,000 characters"),
        ("x" * 300 + ": 1", 1, (), "a key of 300 characters"),
        ("a: " + "[" * 20_000, 1, (), "nest"),
        ("{a: " * 3000, 1, ("a",), "nested more than 32 deep"),
        ("- " * 100_000, 1, (0,), "nested more than 32 deep"),
        ("\n".join(" " * depth + "a:" for depth in range(1500)), 34, ("a",), "nested more than 32 deep"),
    ],
)
def test_refused(text: str, line: int, location: tuple[str | int, ...], said: str) -> None:
    with pytest.raises(Problem, match=said) as caught:
        read(text)
    assert (caught.value.line, caught.value.location) == (line, location)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "number"), [("1e-6", 1e-6), ("5E3", 5e3), ("-1.5e2", -150.0), ("1.e+2", 100.0)])
def test_numbers_with_an_exponent_are_numbers(text: str, number: float) -> None:
    assert read(f"a: {text}")[0] == {"a": number}
    assert read(f"a: '{text}'")[0] == {"a": text}


def test_prose_has_lines_and_tabs_and_nothing_else_that_is_not_seen() -> None:
    assert read('a: "b\\n\\tc"', prose=True)[0] == {"a": "b\n\tc"}
    with pytest.raises(Problem, match="has the character"):
        read('a: "b\\nc"')
    for text in ('a: "b\\x1bc"', '"a\\nb": c'):
        with pytest.raises(Problem, match="has the character"):
            read(text, prose=True)
