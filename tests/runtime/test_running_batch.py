"""Answers that join and leave a running batch say what they would have said alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.running import run

from llmc.errors import InputError, MachineError
from llmc.runtime import Model, SamplingParams, load
from llmc.runtime.running_batch import RunningBatch


def prompts(count: int) -> list[str]:
    """Of many lengths, from a text that the model knows the kind of."""
    text = Path(json.decoder.__file__).read_text(encoding="utf-8")
    return [text[start : start + 10 + start % 130] for start in range(0, count * 97, 97)]


@pytest.fixture(scope="module", params=[0, 2], ids=["plain", "drafts"])
def model(trained: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(trained, threads=1, draft_tokens=request.param) as model:
        yield model


def test_everybody_gets_the_answer_that_they_would_get_alone(model: Model) -> None:
    asked = prompts(10)
    lengths = [1 + 5 * (place % 4) for place in range(len(asked))]
    batch = RunningBatch(model, rows=3)
    answers = [
        batch.answer(prompt, SamplingParams(max_new_tokens=length, logprobs=1))
        for prompt, length in zip(asked, lengths, strict=True)
    ]
    run(batch, list(answers))
    for prompt, length, answer in zip(asked, lengths, answers, strict=True):
        found, alone = answer.generation(), model.generate(prompt, max_new_tokens=length, logprobs=1)
        assert (found.token_ids, found.text, found.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
        assert (found.drafted, found.accepted) == (alone.drafted, alone.accepted)
        assert found.logprobs and alone.logprobs
        np.testing.assert_allclose([t.logprob for t in found.logprobs], [t.logprob for t in alone.logprobs], atol=1e-3)
    assert batch.active == 0 and batch.free == 3


def test_sampled_answers_depend_on_their_seed_alone(model: Model) -> None:
    parameters = [SamplingParams(12, temperature=0.8, seed=seed) for seed in range(5)]
    batch = RunningBatch(model, rows=2)
    answers = [batch.answer("def get", each) for each in parameters]
    run(batch, list(answers))
    alone = [model.generate("def get", each).token_ids for each in parameters]
    assert [answer.tokens for answer in answers] == alone and len({tuple(each) for each in alone}) > 2


def test_who_leaves_makes_room_and_changes_nothing_for_others(model: Model) -> None:
    asked = prompts(6)
    batch = RunningBatch(model, rows=4)
    answers = [batch.answer(prompt, SamplingParams(max_new_tokens=16)) for prompt in asked]
    batch.join(answers[:4])
    while batch.free == 0 and batch.busy:
        batch.step()
        if answers[0].tokens:
            break
    batch.leave(lambda answer: answer not in answers[:2])
    assert batch.active == 2 and batch.free == 2 and not answers[0].done
    batch.join(answers[4:])  # one of them leaves while its prompt is being read
    batch.leave(lambda answer: answer is not answers[5])
    run(batch, [])
    for place in (2, 3, 4):
        assert answers[place].tokens == model.generate(asked[place], max_new_tokens=16).token_ids
    assert not answers[5].done and batch.free == 4


def test_what_is_read_at_once_is_bounded(model: Model) -> None:
    batch = RunningBatch(model, rows=32)
    short = [batch.answer("def get", SamplingParams()) for _ in range(40)]
    assert batch.fitting(short) == 32
    long = [batch.answer([5] * 500, SamplingParams()) for _ in range(8)]
    assert batch.fitting(long) == 4 and batch.fitting([long[0], *short]) == 4 and batch.fitting([]) == 0


def test_scores_of_prompts_are_those_of_score(model: Model) -> None:
    asked = [model.encode(prompt) for prompt in prompts(5)]
    batch = RunningBatch(model)
    answers = [batch.answer(prompt, SamplingParams(1, prompt_logprobs=2)) for prompt in asked]
    run(batch, list(answers))
    for answer, expected in zip(answers, model.score(asked, top=2), strict=True):
        found = answer.generation().prompt_logprobs
        assert found and [each.token_id for each in found] == [each.token_id for each in expected]
        np.testing.assert_allclose([t.logprob for t in found], [t.logprob for t in expected], atol=1e-3)
        assert [list(each.top) for each in found] == [list(each.top) for each in expected]


def test_scores_in_small_parts_and_in_sessions(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.generate(prompts(2), max_new_tokens=3, prompt_logprobs=0)
    monkeypatch.setattr("llmc.runtime.logprobs._CHUNK_BYTES", 4 * model.artifact.vocab_size * 2 * 3)
    parts = model.generate(prompts(2), max_new_tokens=3, prompt_logprobs=0)
    session = model.session(prompts(2)[1])
    again = session.generate(prompts(2)[1], max_new_tokens=3, prompt_logprobs=0)
    assert again.cached_tokens == 0
    for one, other in [*zip(whole, parts, strict=True), (whole[1], again)]:
        assert one.token_ids == other.token_ids and one.prompt_logprobs and other.prompt_logprobs
        assert len(other.prompt_logprobs) == one.prompt_tokens - 1
        values = [[each.logprob for each in found.prompt_logprobs or ()] for found in (one, other)]
        np.testing.assert_allclose(*values, atol=1e-3)


def test_a_pass_that_fails_leaves_a_batch_that_works(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = RunningBatch(model, rows=2)
    batch.join([batch.answer("def get", SamplingParams(max_new_tokens=8))])
    batch.step()

    def fails(*_: Any) -> None:
        raise MachineError("the engine failed")

    with monkeypatch.context() as patch:
        patch.setattr(model.backend, "forward", fails)
        with pytest.raises(MachineError, match="the engine failed"):
            batch.step()
    assert not batch.busy and batch.free == 2
    answer = batch.answer("def get", SamplingParams(max_new_tokens=8))
    run(batch, [answer])
    assert answer.tokens == model.generate("def get", max_new_tokens=8).token_ids


def test_caches_grow_with_the_longest_and_shrink_when_it_leaves(model: Model) -> None:
    batch = RunningBatch(model, rows=2)
    asked = model.encode(prompts(1)[0])
    alone = model.generate(asked, max_new_tokens=40).token_ids
    long = batch.answer([5] * 900 + asked, SamplingParams(max_new_tokens=3))
    answer = batch.answer(asked, SamplingParams(max_new_tokens=40))
    batch.join([answer])
    batch.step()
    run(batch, [long])
    cache: Any = batch._cache
    assert long.done and answer.tokens == alone and cache.capacity <= 256


def test_no_rows_and_wrong_prompts(model: Model) -> None:
    with pytest.raises(InputError, match="rows is 0"):
        RunningBatch(model, rows=0)
    batch = RunningBatch(model, rows=10_000)
    assert batch.rows == model.backend.batch
    with pytest.raises(InputError, match="do not fit the context"):
        batch.answer([5] * (model.context + 1), SamplingParams())
