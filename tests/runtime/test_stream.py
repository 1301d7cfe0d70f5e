import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmc.runtime import Generation, Model, SamplingParams, load

PROMPT = "def parse("


@pytest.fixture(scope="module")
def model(trained: Path) -> Iterator[Model]:
    with load(trained, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def whole(model: Model) -> Generation:
    return model.generate(PROMPT, max_new_tokens=40)


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("place", [0, 7, 25])
def test_a_stop_string_ends_the_answer_before_it(model: Model, whole: Generation, place: int, length: int) -> None:
    stop = whole.text[place : place + length]
    answer = model.generate(PROMPT, max_new_tokens=40, stop=["never to be seen", stop])
    assert answer.text == whole.text[: whole.text.index(stop)] and answer.finish_reason == "stop"
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]  # as they came, the stop string's among them
    assert stop in model.tokenizer.decode([*model.encode(PROMPT), *answer.token_ids])
    assert "".join(model.stream(PROMPT, max_new_tokens=40, stop=stop)) == answer.text
    together = model.generate([PROMPT, "x"], [SamplingParams(40, stop=stop), SamplingParams(3)])
    assert together[0].text == answer.text and len(together[1].token_ids) == 3


def test_what_only_begins_like_a_stop_string_is_not_lost(model: Model, whole: Generation) -> None:
    stop = [whole.text[-3:] + "!", whole.text[5:9] + "§"]
    assert model.generate(PROMPT, max_new_tokens=40, stop=stop).text == whole.text
    assert "".join(model.stream(PROMPT, max_new_tokens=40, stop=stop)) == whole.text


def test_a_cancelled_stream_ends_and_tells_what_it_said(model: Model, whole: Generation) -> None:
    with model.stream(PROMPT, max_new_tokens=40) as stream:
        said = next(stream) + next(stream)
    assert list(stream) == []
    left = stream.generation
    assert left.finish_reason == "cancelled" and left.text.startswith(said) and whole.text.startswith(left.text)


@pytest.fixture
def endless(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The same model, for which no token ends the text."""
    monkeypatch.setattr(model, "artifact", dataclasses.replace(model.artifact, eos_token_ids=frozenset()))
    return model


def test_cancelled_from_another_thread(endless: Model) -> None:
    stream = endless.stream(PROMPT, max_new_tokens=None)
    timer = threading.Timer(0.05, stream.cancel)
    timer.start()
    said = "".join(stream)
    assert len(said) > 0 and stream.generation.finish_reason == "cancelled"
    timer.join()


def test_generating_can_be_cancelled(model: Model) -> None:
    asked: list[int] = []

    def ask() -> bool:
        asked.append(1)
        return len(asked) > 6

    answers = model.generate(["a", "b"], max_new_tokens=100, cancelled=ask)
    assert all(a.finish_reason == "cancelled" and 0 < len(a.token_ids) < 20 for a in answers)


def test_async_streams_are_those_of_threads(model: Model, whole: Generation) -> None:
    async def collect(prompt: str) -> Any:
        return "".join([piece async for piece in model.astream(prompt, max_new_tokens=40)])

    async def several() -> Any:
        return await asyncio.gather(collect(PROMPT), collect("import os"), model.agenerate(PROMPT, max_new_tokens=40))

    first, second, answer = asyncio.run(several())
    assert first == whole.text == answer.text
    assert second == model.generate("import os", max_new_tokens=40).text


def test_a_cancelled_task_ends_the_answer(endless: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, forward = [], endless.backend.forward
    monkeypatch.setattr(endless.backend, "forward", lambda *arguments: passes.append(1) or forward(*arguments))

    async def read() -> None:
        async for _ in endless.astream(PROMPT, max_new_tokens=None):
            pass

    async def both() -> None:
        for task in (asyncio.create_task(read()), asyncio.create_task(endless.agenerate(PROMPT, max_new_tokens=None))):
            begun = len(passes)
            while len(passes) < begun + 3:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(both())  # waits for the threads
    assert len(passes) < 900


def test_several_threads_use_one_model(model: Model, whole: Generation) -> None:
    prompts = [PROMPT, "import os", "class Error(", "x = {"]
    expected = [model.generate(prompt, max_new_tokens=30).text for prompt in prompts]
    found = [""] * len(prompts)

    def work(row: int) -> None:
        found[row] = "".join(model.stream(prompts[row], max_new_tokens=30))

    threads = [threading.Thread(target=work, args=(row,)) for row in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
