"""The original behind the runtime's interface says what transformers' own class says of the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.byte_tokenizer import byte_tokenizer
from support.running import run
from support.small_config import small_config
from support.small_model import save, witness

from llmc import original
from llmc.errors import MachineError
from llmc.original import load_original
from llmc.runtime import Model, SamplingParams
from llmc.runtime.running_batch import RunningBatch

TEXTS = ["import os\n\n\ndef main(argv):\n", "class Error(Exception):\n    pass\n\n\ndef f(x, y):\n    return", "x"]


@pytest.fixture(scope="module")
def model(embedded: Path) -> Model:
    return load_original(embedded)


@pytest.fixture(scope="module")
def theirs(embedded: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32).eval()


def test_log_probabilities_are_those_of_transformers(model: Model, theirs: Any) -> None:
    found = model.score(list(TEXTS[:2]))
    for text, tokens in zip(TEXTS, found, strict=False):
        ids = torch.tensor([model.encode(text)])
        with torch.no_grad():
            expected = theirs(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        assert [each.logprob for each in tokens] == pytest.approx(expected.tolist(), abs=2e-4)


def test_answers_of_prompts_of_any_length_are_those_of_transformers(model: Model, theirs: Any) -> None:
    """Rows stand at different places of the cache, and one is done earlier than the others."""
    prompts = [model.encode(text) for text in TEXTS]
    answers = model.generate(prompts, parameters=[SamplingParams(count) for count in (12, 3, 12)])
    for ids, answer in zip(prompts, answers, strict=True):
        expected = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
        assert answer.token_ids == expected[: len(answer.token_ids)]


def test_a_long_prompt_is_read_in_steps(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.score([TEXTS[1] * 12])[0]
    monkeypatch.setattr(model.backend, "max_prefill_tokens", 17)
    monkeypatch.setattr(original, "_FIRST_CAPACITY", 8)
    steps = model.score([TEXTS[1] * 12])[0]
    assert np.allclose([each.logprob for each in whole], [each.logprob for each in steps], atol=1e-4)


def test_what_does_not_fit_into_memory_is_told_before_it_is_read(
    embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(original.machine, "memory", lambda: 1 << 20)
    with pytest.raises(MachineError, match=r"held in memory, 51\.\d MB in float32.*--original"):
        load_original(embedded)


def test_a_model_with_states_answers_one_text_at_a_time(tmp_path: Path) -> None:
    """They cannot be rolled back, so that rows of other lengths cannot share a batch."""
    published = Path(__file__).parents[1] / "data" / "configs" / "Qwen--Qwen3-Next-80B-A3B.bridge.json"
    config = small_config(json.loads(published.read_text())) | {"vocab_size": 260}
    theirs = witness(config)
    byte_tokenizer(save(theirs, config, tmp_path / "next"))
    model = load_original(tmp_path / "next")
    assert model.backend.batch == 1
    texts = ["a first text", "another"]
    for ids, tokens in zip(map(model.encode, texts), model.score(list(texts)), strict=True):
        asked = torch.tensor([ids])
        expected = theirs(asked).logits.log_softmax(-1)[0, :-1].gather(1, asked[0, 1:, None])[:, 0]
        assert [each.logprob for each in tokens] == pytest.approx(expected.tolist(), abs=1e-3)
    answers = model.generate([model.encode(text) for text in texts], max_new_tokens=5)
    for ids, answer in zip(map(model.encode, texts), answers, strict=True):
        expected = theirs.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False, eos_token_id=None)[0]
        assert answer.token_ids == expected[len(ids) :].tolist()[: len(answer.token_ids)] and answer.token_ids


def test_answers_that_join_and_leave_a_running_batch(model: Model) -> None:
    """Rows of a cache are a cache, which grows with the others."""
    asked, batch = [[3, 4, 5], [7] * 40, [9, 2], [6, 6, 1, 8]], RunningBatch(model, rows=2)
    answers = [batch.answer(ids, SamplingParams(max_new_tokens=4 + 3 * place)) for place, ids in enumerate(asked)]
    run(batch, list(answers))
    for place, (ids, answer) in enumerate(zip(asked, answers, strict=True)):
        assert answer.generation().token_ids == model.generate(ids, max_new_tokens=4 + 3 * place).token_ids
