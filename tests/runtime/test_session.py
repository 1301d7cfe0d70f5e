"""Sessions: what is in the cache already is not computed again, and changes nothing that is said."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmc.errors import InputError, MachineError
from llmc.runtime import Model, Session, load

TEXT = "import os\nimport sys\n\n\nclass Reader(object):\n    def __init__(self, path):\n        self.path = path\n"
LONGER = TEXT + "\n    def read(self):\n"


@pytest.fixture(scope="module", params=[True, False], ids=["drafts", "no drafts"])
def model(trained: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(trained, threads=1, speculative=request.param, draft_tokens=2) as model:
        yield model


@pytest.fixture
def computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Tokens that the main graph was given since the list was last cleared."""
    seen, forward = [], model.backend.forward

    def counted(
        graph: str, cache: Any, input_ids: NDArray[Any], *rest: Any
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        if graph == "main":
            seen.append(input_ids.size)
        return forward(graph, cache, input_ids, *rest)

    monkeypatch.setattr(model.backend, "forward", counted)
    return seen


def test_a_prompt_that_goes_on_is_not_read_again(model: Model, computed: list[Any]) -> None:
    session = model.session(TEXT)
    assert session.tokens == model.tokenizer.encode(TEXT).ids and sum(computed) == len(session.tokens)
    expected = model.generate(LONGER, max_new_tokens=20)
    computed.clear()
    answer = session.generate(LONGER, max_new_tokens=20)
    assert (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
    assert answer.cached_tokens >= len(model.tokenizer.encode(TEXT).ids) - 3 > 20
    assert computed[0] == answer.prompt_tokens - answer.cached_tokens
    # What was answered is in the cache, too.
    again = session.generate(model.encode(LONGER) + answer.token_ids, max_new_tokens=5)
    assert again.cached_tokens >= answer.prompt_tokens + 20 - 4
    straight = model.generate(model.encode(LONGER) + answer.token_ids, max_new_tokens=5)
    assert again.token_ids == straight.token_ids


def test_drafts_are_as_good_as_without_a_session(trained: Path) -> None:
    """The MTP layer's cache is complete, whatever was reused, taken back or said before."""
    with load(trained, threads=1, draft_tokens=2) as model:
        _drafts_are_as_good(model, model.session(TEXT))


def _drafts_are_as_good(model: Model, session: Session) -> None:
    session.generate(TEXT + "    def close(", max_new_tokens=15)
    for prompt in (LONGER, TEXT + "import re", LONGER, TEXT):
        counts = [
            (a.steps, a.drafted, a.accepted) for m in (model, session) for a in [m.generate(prompt, max_new_tokens=25)]
        ]
        assert counts[0] == counts[1]


def test_another_prompt_takes_back_what_differs(model: Model) -> None:
    session = model.session()
    assert session.tokens == []
    for prompt in (LONGER, TEXT + "import re", "x = 1", LONGER):
        assert (
            session.generate(prompt, max_new_tokens=8).token_ids == model.generate(prompt, max_new_tokens=8).token_ids
        )
    same = session.generate(LONGER, max_new_tokens=8)
    assert same.token_ids == model.generate(LONGER, max_new_tokens=8).token_ids
    assert same.cached_tokens > 0.8 * same.prompt_tokens


def test_forks_go_their_own_way(model: Model) -> None:
    session = model.session(TEXT)
    other = session.fork()
    assert other.tokens == session.tokens
    first, second = session.generate(LONGER, max_new_tokens=12), other.generate(TEXT + "import re", max_new_tokens=12)
    assert first.cached_tokens and second.cached_tokens
    assert first.token_ids == model.generate(LONGER, max_new_tokens=12).token_ids
    assert second.token_ids == model.generate(TEXT + "import re", max_new_tokens=12).token_ids
    assert session.tokens[: first.prompt_tokens] == model.tokenizer.encode(LONGER).ids


def test_reading_replaces_what_was_held(model: Model) -> None:
    session = model.session(LONGER)
    session.read("x = 1")
    assert session.tokens == model.encode("x = 1")
    session.generate(TEXT, max_new_tokens=1)
    assert session.generate(TEXT, max_new_tokens=5).cached_tokens >= len(model.encode(TEXT)) - 2


def test_the_next_answer_waits_for_the_pass_that_was_cancelled(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled task's thread may be in the middle of a pass on the session's cache."""
    forward, entered = model.backend.forward, threading.Event()

    def slow(*arguments: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        entered.set()
        time.sleep(0.02)
        return forward(*arguments)

    monkeypatch.setattr(model.backend, "forward", slow)

    async def ask(session: Session) -> None:
        for _ in range(4):
            entered.clear()
            task = asyncio.create_task(session.agenerate(LONGER * 3, max_new_tokens=30))
            await asyncio.to_thread(entered.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            answer = await session.agenerate(LONGER, max_new_tokens=6)
            assert answer.token_ids == expected and session.tokens[: answer.prompt_tokens] == model.encode(LONGER)

    expected = model.generate(LONGER, max_new_tokens=6).token_ids
    asyncio.run(ask(model.session()))


def test_a_cache_that_finds_no_memory_stays_as_it_was(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session(TEXT)
    zeros, left = np.zeros, [3]

    def scarce(shape: NDArray[Any], dtype: type[Any] = float) -> NDArray[Any]:
        left[0] -= len(shape) == 4
        if len(shape) == 4 and left[0] == 0:
            raise MemoryError
        return zeros(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", lambda shape, dtype=float: scarce(np.atleast_1d(shape), dtype))
        with pytest.raises(MachineError, match="no memory for a cache of 512 tokens"):
            session.generate(LONGER * 8, max_new_tokens=4)
    assert session.generate(LONGER, max_new_tokens=8).token_ids == model.generate(LONGER, max_new_tokens=8).token_ids
    assert session.generate(LONGER * 8, max_new_tokens=4).cached_tokens > 20


def test_a_batch_shares_the_beginning_and_leaves_the_session_alone(model: Model, computed: list[Any]) -> None:
    session = model.session(TEXT)
    held = session.tokens
    prompts = [TEXT + end for end in ("import re", "\n    def read(self):\n", "x")]
    computed.clear()
    together = session.generate(prompts, max_new_tokens=10)
    assert all(answer.cached_tokens >= len(held) - 3 for answer in together) and computed[0] < 60
    assert [a.token_ids for a in together] == [a.token_ids for a in model.generate(prompts, max_new_tokens=10)]
    assert session.tokens == held
    assert session.generate(TEXT, max_new_tokens=5).token_ids == model.generate(TEXT, max_new_tokens=5).token_ids


def test_a_new_answer_ends_the_one_that_is_streamed(model: Model) -> None:
    session = model.session(TEXT)
    stream = session.stream(LONGER, max_new_tokens=100)
    next(stream)
    answer = session.generate(TEXT + "import re", max_new_tokens=10)
    assert list(stream) == [] and stream.generation.finish_reason == "cancelled"
    assert answer.token_ids == model.generate(TEXT + "import re", max_new_tokens=10).token_ids


def test_a_pass_that_fails_leaves_a_session_that_works(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session(TEXT)
    forward, left = model.backend.forward, [3]

    def failing(*arguments: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
        left[0] -= 1
        logits, hidden = forward(*arguments)
        return (logits * np.nan if left[0] == 0 else logits), hidden

    with monkeypatch.context() as patch:
        patch.setattr(model.backend, "forward", failing)
        with pytest.raises(InputError, match="NaN or infinity"):
            session.generate(LONGER, max_new_tokens=10)
    assert session.generate(LONGER, max_new_tokens=8).token_ids == model.generate(LONGER, max_new_tokens=8).token_ids
