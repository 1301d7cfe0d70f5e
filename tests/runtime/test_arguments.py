"""Arguments of the wrong type or out of range, each told in one line that names it; None where it means the default."""

import asyncio
import fractions
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.errors import InputError
from llmc.runtime import SamplingParams, load
from llmc.runtime.model import Model

HUGE = 10**5000  # more digits than Python prints


@pytest.fixture(scope="module")
def model(dense: Path) -> Iterator[Model]:
    with load(dense, threads=1) as model:
        yield model


NO_NUMBERS = [float("nan"), float("inf"), -1, True, "1", b"1", [1], 1j, HUGE, np.bool_(True), {}]
NOT_WHOLE = [3.5, 3.0, -1, True, False, "1", 2**70, HUGE, -HUGE, [1], np.float32(1), float("nan")]


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize("place", range(len(NO_NUMBERS)))
def test_numbers(name: str, place: int) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*; it has to be ") as told:
        SamplingParams(**{name: NO_NUMBERS[place]})
    assert "\n" not in str(told.value) and len(str(told.value)) < 200


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k", "seed", "logprobs"])
@pytest.mark.parametrize("place", range(len(NOT_WHOLE)))
def test_whole_numbers(name: str, place: int) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*; it has to be "):
        SamplingParams(**{name: NOT_WHOLE[place]})


@pytest.mark.parametrize(
    "value", [b"x", 3, [b"x"], ["a", 3], {"a": 1}, [None], iter("a"), np.array([1]), ["a", ""], ""]
)
def test_stop_strings(value: Any) -> None:
    with pytest.raises(InputError, match="stop"):
        SamplingParams(stop=value)


def test_numbers_of_numpy_and_others_are_numbers() -> None:
    found = SamplingParams(
        np.int64(3), np.float32(0.5), np.uint8(4), fractions.Fraction(1, 2), 0, 2, np.int32(7), {"a"}
    )
    assert found == SamplingParams(3, 0.5, 4, 0.5, 0.0, 2.0, 7, ("a",))
    assert [type(value) for value in (found.max_new_tokens, found.temperature, found.min_p)] == [int, float, float]
    assert SamplingParams(seed=2**64 - 1).seed == 2**64 - 1


def test_none_is_the_default() -> None:
    nothing = dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop"))
    assert SamplingParams(**nothing) == SamplingParams()
    assert SamplingParams(temperature=0.5, stop="a").changed(nothing) == SamplingParams(temperature=0.5)
    assert SamplingParams(max_new_tokens=None, seed=None, logprobs=None).max_new_tokens is None


def test_without_a_seed_every_answer_is_another(model: Model) -> None:
    drawn = {"max_new_tokens": 12, "temperature": 2.0}
    fresh = [model.generate("hello", seed=None, **drawn).text for _ in range(4)]
    fresh += [answer.text for answer in model.generate(["hello"] * 4, seed=None, **drawn)]
    assert len(set(fresh)) == 8
    last = model.generate(["hello", "hello"], seed=2**64 - 1, **drawn)  # seeds begin anew behind the last one
    assert last[1].text == model.generate("hello", seed=0, **drawn).text


REFUSED: list[tuple[Callable[[Model], object], str]] = [
    (lambda m: m.generate(b"hello"), r"prompts is b'hello'; it has to be text; decode it"),
    (lambda m: m.generate([b"hello"]), r"the prompt is b'hello'; it has to be text; decode it"),
    (lambda m: m.generate(bytearray(b"hello")), "decode it"),
    (lambda m: m.generate(None), "prompts cannot be of type NoneType; a prompt is a text"),
    (lambda m: m.generate(3), "prompts cannot be of type int"),
    (lambda m: m.generate({"role": "user", "content": "hi"}), "prompts is .*; it has to be in a list"),
    (lambda m: m.generate({"a", "b"}), "prompts cannot be of type set"),
    (lambda m: m.generate(iter("ab")), "prompts cannot be of type str_"),
    (lambda m: m.generate([5, True]), "one of the prompt's tokens is True"),
    (lambda m: m.generate([True, 5]), "one of the prompt's tokens is True"),
    (lambda m: m.generate([5, 2.5]), "one of the prompt's tokens is 2.5"),
    (lambda m: m.generate([5, "a"]), "one of the prompt's tokens is 'a'"),
    (lambda m: m.generate([5, HUGE]), "one of the prompt's tokens is a very large"),
    (lambda m: m.generate(["a", None]), "the prompt cannot be of type NoneType"),
    (lambda m: m.generate(np.array([1.5, 2.0])), "one of the prompt's tokens is 1.5"),
    (lambda m: m.generate(np.array(3)), "prompts cannot be of type ndarray"),
    (lambda m: m.generate("a", {"temperature": 1.0}), "parameters is .*; it has to be llmc.runtime.SamplingParams"),
    (lambda m: m.generate("a", 1.0), "parameters is 1.0"),
    (lambda m: m.generate("a", "greedy"), "parameters is 'greedy'"),
    (lambda m: m.generate(["a"], [None, 3]), "parameters is 3"),
    (
        lambda m: m.generate("a", max_tokens=5),
        "unknown parameter 'max_tokens'; did you mean 'max_new_tokens'\\? \\(known: max_new_tokens, temperature",
    ),
    (lambda m: m.generate("a", cancelled=True), "cancelled is True; it has to be something that can be called"),
    (lambda m: m.stream(["a", "b"]), "one of the prompt's tokens is 'a'"),
    (lambda m: m.stream(b"a"), "the prompt is b'a'"),
    (lambda m: m.stream("a", temperature="hot"), "temperature is 'hot'"),
    (lambda m: m.chat("hi"), "messages is 'hi'; it has to be a list"),
    (lambda m: m.chat([]), "messages is"),
    (lambda m: m.chat([{"content": "hi"}]), "message 0 is .*; it has to be as in"),
    (lambda m: m.chat([{"role": "user", "content": b"hi"}]), "the content of message 0 is b'hi'"),
    (lambda m: m.generate([{"role": "user", "content": 5}]), "the content of message 0 is 5"),
    (lambda m: m.chat([{"role": "user", "content": "hi"}, "hi"]), "message 1 is 'hi'"),
    (lambda m: m.chat([{"role": "user", "content": "hi"}], template=["a"]), "template is"),
    (lambda m: m.chat([{"role": "user", "content": "hi"}], template={"messages": []}), "template is"),
    (lambda m: m.score("text"), r"prompts is 'text'; it has to be a list of prompts, also for one: \[prompt\]"),
    (lambda m: m.score([5, 6]), r"prompts is \[5, 6\]; it has to be a list of prompts"),
    (lambda m: m.score(b"text"), "prompts is b'text'"),
    (lambda m: m.score(["text"], first=1.5), "first is 1.5"),
    (lambda m: m.score(["text"], first="1"), "first is '1'"),
    (lambda m: m.score(["text"], top=True), "top is True"),
    (lambda m: m.session(b"text"), "the prompt is b'text'"),
    (lambda m: m.session().read(5), "the prompt cannot be of type int"),
    (lambda m: m.session().generate("a", top_k=1.5), "top_k is 1.5"),
    (lambda m: m.check(progress=3), "progress is 3"),
    (lambda m: m.tokenizer.encode(b"a"), "the text is b'a'; it has to be text"),
    (lambda m: m.tokenizer.encode(None), "the text is None"),
    (lambda m: m.tokenizer.decode("a"), "the tokens is 'a'; it has to be a list of whole numbers"),
    (lambda m: m.tokenizer.decode(5), "the tokens is 5"),
    (lambda m: m.tokenizer.decode([-1]), "one of the tokens is -1; it has to be at least 0"),
    (lambda m: m.tokenizer.decode([2**40]), "one of the tokens is 1099511627776"),
    (lambda m: load(""), "artifact is ''; it has to be a path"),
    (lambda m: asyncio.run(m.agenerate(b"a")), "prompts is b'a'"),
    (lambda m: asyncio.run(_first(m.astream("a", stop=[3]))), "one of stop is 3"),
    (lambda m: load(b"artifact"), "artifact is b'artifact'; it has to be a path"),
    (lambda m: load(None), "artifact is None"),
    (lambda m: load(Path("artifact"), backend=3), "backend is 3"),
    (lambda m: load("artifact", threads=0), "threads is 0; it has to be at least 1"),
    (
        lambda m: load("artifact", threads=2**70),
        "threads is 1180591620717411303424; it has to be at least 1 and at most",
    ),
    (lambda m: load("artifact", threads=1.5), "threads is 1.5"),
    (lambda m: load("artifact", draft_tokens=True), "draft_tokens is True"),
    (lambda m: load("artifact", draft_tokens=-1), "draft_tokens is -1"),
    (lambda m: load("artifact", speculative=1), "speculative is 1; it has to be True or False"),
    (lambda m: load("artifact", verify="yes"), "verify is 'yes'"),
]


async def _first(pieces: Any) -> None:
    return await anext(pieces)


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_is_wrong_is_told_by_name(model: Model, call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        call(model)
    assert "\n" not in str(told.value)


def test_prompts_of_numpy_and_tuples_are_prompts(model: Model) -> None:
    ids = model.encode("hello")
    expected = model.generate("hello", max_new_tokens=3)
    for same in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16), [np.int64(token) for token in ids]):
        assert model.generate(same, max_new_tokens=3) == expected
    assert model.generate(np.array([ids, ids]), max_new_tokens=3) == [expected, expected]
    assert model.score([np.array(ids)], np.array([2])) == model.score(["hello"], first=2)


def test_extreme_numbers_still_give_probabilities() -> None:
    logits = np.array([1.0, 1.0, -3.0, 2.0], np.float32)
    for extreme in ({"temperature": 1e-320}, {"temperature": 1e300}, {"repetition_penalty": 1e-300}, {"top_p": 1e-320}):
        found = SamplingParams(**{"temperature": 1.0} | extreme).distribution(logits, [0, 2, 3])
        assert found.sum() == pytest.approx(1) and (found >= 0).all()
        alike = SamplingParams(**{"temperature": 1.0} | extreme).distribution(np.zeros(7, np.float32))
        assert alike.sum() == pytest.approx(1) and (alike >= 0).all()


def test_checking_arguments_does_not_import_pydantic() -> None:
    code = "import sys, llmc.runtime; llmc.runtime.SamplingParams(seed=3); print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
