from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.errors import InputError
from llmc.runtime import Model, SamplingParams, load

TEXTS = ["import os\n\n\ndef main(argv):\n    return 0\n", "x = [1, 2, 3]", "class Error(Exception):\n    pass\n" * 40]


@pytest.fixture(scope="module")
def model(trained: Path) -> Iterator[Model]:
    with load(trained, threads=1, draft_tokens=2) as model:
        yield model


@pytest.fixture(scope="module")
def said(trained: Path) -> Callable[..., Any]:
    """Log-probabilities [L, V] of every next token by the torch model."""
    torch_model = CausalLM.load(Checkpoint.open(trained))
    return lambda ids: torch_model.logits(torch_model.hidden(torch.tensor([ids])))[0].double().log_softmax(-1).numpy()


@pytest.mark.parametrize("prefill", [256, 7])
def test_scores_are_the_log_probabilities_of_the_text(
    model: Model, said: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, prefill: int
) -> None:
    monkeypatch.setattr(model.backend, "max_prefill_tokens", prefill)
    texts = [model.encode(text) for text in TEXTS]
    first = [1, 3, len(texts[2]) - 4]
    for ids, start, found in zip(texts, first, model.score(TEXTS, first, top=3), strict=True):
        expected = said(ids)
        assert [each.token_id for each in found] == ids[start:]
        places = np.arange(start - 1, len(ids) - 1)
        np.testing.assert_allclose([each.logprob for each in found], expected[places, ids[start:]], atol=2e-4)
        best = np.argsort(-expected[places], axis=-1)[:, :3]
        for row, (place, each) in enumerate(zip(places, found, strict=True)):
            np.testing.assert_allclose(list(each.top.values()), expected[place, best[row]], atol=2e-4)
            assert list(each.top.values()) == sorted(each.top.values(), reverse=True)
    alone = [model.score([text], start)[0] for text, start in zip(TEXTS, first, strict=True)]
    assert [len(each) for each in alone] == [len(ids) - start for ids, start in zip(texts, first, strict=True)]


def test_only_wanted_logits_are_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward = [], model.backend.forward

    def watched(
        graph: str, cache: Any, ids: NDArray[Any], position: NDArray[Any], index: NDArray[Any], *rest: Any
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        seen.append((ids.shape[1], index.shape[1]))
        return forward(graph, cache, ids, position, index, *rest)

    monkeypatch.setattr(model.backend, "forward", watched)
    length = len(model.encode(TEXTS[2]))
    monkeypatch.setattr("llmc.runtime.logprobs._CHUNK_BYTES", 4 * 4 * 4096)  # logits of four places
    assert len(model.score([TEXTS[2]], length - 10)[0]) == 10
    assert sum(width for width, _ in seen) == length - 1
    assert [wanted for _, wanted in seen[-3:]] == [4, 4, 2] and all(wanted == 1 for _, wanted in seen[:-3])
    assert seen[0][0] == min(256, length - 11)


def test_prompts_of_every_kind(model: Model) -> None:
    ids = model.encode("import os")
    one = model.generate("import os", max_new_tokens=4)
    assert model.generate(np.array(ids), max_new_tokens=4) == model.generate(tuple(ids), max_new_tokens=4) == one
    assert model.generate([np.array(ids), "import os"], max_new_tokens=4) == [one, one]


def test_more_texts_than_a_batch_come_back_in_order(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.backend, "batch", 2)
    many = [TEXTS[2], "a = 1", TEXTS[0], "b = 2", TEXTS[1]]
    assert [[t.token_id for t in found] for found in model.score(many)] == [model.encode(text)[1:] for text in many]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 5, "repetition_penalty": 1.3}])
def test_logprobs_of_an_answer_are_the_models_own(
    model: Model, said: Callable[..., Any], options: dict[str, Any]
) -> None:
    """Before temperature and penalty, with drafts or in a batch."""
    one = model.generate("def get", max_new_tokens=20, logprobs=2, **options)
    several = model.generate(["def get", "import os"], max_new_tokens=20, logprobs=0, **options)
    assert one.drafted > 0
    for prompt, answer in [("def get", one), ("def get", several[0]), ("import os", several[1])]:
        start = model.encode(prompt)
        expected = said([*start, *answer.token_ids])
        for place, each in enumerate(answer.logprobs, len(start) - 1):
            assert each.logprob == pytest.approx(expected[place, each.token_id], abs=2e-4)
            assert len(each.top) == (2 if answer is one else 0)
        assert [each.token_id for each in answer.logprobs] == answer.token_ids
    assert model.generate("def get", max_new_tokens=2).logprobs is None


def test_every_row_of_a_batch_has_its_own_parameters(model: Model) -> None:
    each = [
        SamplingParams(max_new_tokens=5),
        SamplingParams(max_new_tokens=20, temperature=1.0, seed=7),
        SamplingParams(max_new_tokens=12, repetition_penalty=1.5),
    ]
    prompts = ["import os", "def get", "x = ["]
    together = model.generate(prompts, each)
    alone = [model.generate(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [len(a.token_ids) for a in together] == [5, 20, 12]


def test_batches_draft_as_well_as_single_prompts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows end at different times; what they say and how many drafts were accepted is as if each were alone."""
    prompts = ["import os", "def get", "class Error(", "    return self.", "x = ["]
    each = [SamplingParams(max_new_tokens=n) for n in (4, 33, 17, 9, 28)]
    together = model.generate(prompts, each)
    alone = [model.generate(prompt, one) for prompt, one in zip(prompts, each, strict=True)]
    assert together == alone and sum(a.accepted for a in alone) > 20


def test_the_context_ends_for_one_row_and_the_others_go_on(model: Model) -> None:
    long = model.encode("value = value + 1\n" * 400)[: model.context - 6]
    for prompts in ([long, model.encode("def get")], [model.encode("def get"), long]):
        lengths = [7 if len(prompt) > 100 else 30 for prompt in prompts]
        together = model.generate(prompts, [SamplingParams(max_new_tokens=n) for n in lengths])
        alone = [model.generate(p, max_new_tokens=n) for p, n in zip(prompts, lengths, strict=True)]
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.score(["a b"], 0), "at least 1"),
        (lambda m: m.score(["a b", "c"], [1]), "first is for 1 prompts of 2"),
        (lambda m: m.score([[5, 4096]]), "token 4096 is none of this model's 4096"),
        (lambda m: m.generate([-1, 3]), "token -1 is none"),
        (lambda m: m.generate([1.5, 2.0]), "a prompt is a text, a list of tokens or a list of messages"),
        (lambda m: m.generate(("a", "b"), [SamplingParams()]), "2 prompts, but parameters for 1"),
        (lambda m: m.generate("caf\udce9"), "no valid text at character 3"),
        (lambda m: m.generate([[]]), "the prompt is empty"),
        (lambda m: m.generate("a", logprobs=-1), "logprobs is -1; it has to be at least 0"),
        (lambda m: m.generate("a", stop=""), "stop holds an empty string"),
        (lambda m: m.generate("a", min_p=2.0), "min_p is 2.0; it has to be from 0 to 1"),
        (lambda m: m.generate("a", repetition_penalty=0.0), "has to be above 0"),
        (lambda m: m.generate([5] * 1025, max_new_tokens=None), "1025 prompt tokens do not fit the context of 1024"),
    ],
)
def test_bad_arguments(model: Model, call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(model)
