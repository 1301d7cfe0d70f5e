"""Windows with a sentence that is asked for, and what is made of the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmc.errors import InputError
from llmc.runtime import load
from llmc.runtime.long_context import DEPTHS, REPEATS, ask, lengths, needles, recall, with_divergence
from llmc.runtime.tokenizer import Tokenizer
from llmc.runtime.uncertainty import standard_error


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return Tokenizer(embedded, 4096)


def test_lengths_double_up_to_the_context() -> None:
    assert lengths(1024, None) == [256, 512, 1024] and lengths(1024, 600) == [300, 600]
    assert lengths(4096, 1024)[-1] == 1024 and lengths(100, None) == [100]


def test_the_sentence_stands_where_it_should_and_the_answer_at_the_end(tokenizer: Tokenizer) -> None:
    filler = np.full((4, 64), tokenizer.encode("x", add_special_tokens=False).ids[0])
    found = needles(tokenizer, filler, 256)
    assert found.ids.shape == (len(DEPTHS) * REPEATS, 256) and found.depths == list(DEPTHS) * REPEATS
    assert (found.ids[:, 0] == tokenizer.begins_with[0]).all()
    for row, depth, count in zip(found.ids.tolist(), found.depths, found.answers, strict=True):
        answer = tokenizer.decode(row[-count:])
        text = tokenizer.decode(row)
        first, last = text.index("The secret number of "), text.rindex("The secret number of ")
        name = text[last:].split()[4]
        assert answer.strip().isdigit() and len(answer.strip()) == 5 and text.endswith(f"{name} is{answer}")
        assert text[first:].startswith(f"The secret number of {name} is{answer}.\n")
        before, after = text[:first].count("x"), text[first:last].count("x")
        assert before / (before + after) == pytest.approx(depth, abs=0.01)
    assert (needles(tokenizer, filler, 256).ids == found.ids).all()
    with pytest.raises(InputError, match="windows of 30 tokens have no room for a sentence and a question"):
        needles(tokenizer, filler, 30)


def test_what_is_recalled_is_counted_by_window(tokenizer: Tokenizer) -> None:
    found = needles(tokenizer, np.arange(100, 164), 128)
    generator = np.random.default_rng(0)
    mine, its = ([-generator.exponential(size=count) for count in found.answers] for _ in range(2))
    right = [np.arange(count) < (count - (row % 3 == 0)) for row, count in enumerate(found.answers)]
    made = recall(found, [*zip(mine, right, strict=True)], [*zip(its, [each | True for each in right], strict=True)])
    sums, before = (np.array([each.sum() for each in side]) for side in (mine, its))
    assert made.recalled == pytest.approx(10 / 15) and made.recalled_original == 1
    assert made.logprob == pytest.approx(sums.mean()) and made.logprob_original == pytest.approx(before.mean())
    assert made.change_stderr == pytest.approx((sums - before).std(ddof=1) / np.sqrt(15))
    assert made.by_depth[1] == pytest.approx(sums[[1, 6, 11]].mean())
    kl = generator.exponential(size=(15, 127))
    told = with_divergence(made, kl)
    assert told.kl_mean_stderr == standard_error(kl) and told.kl_by_position and told.kl_by_position[-1].last == 127
    assert made.kl_mean is None


def test_a_model_is_asked_for_the_answer_alone(trained: Path) -> None:
    with load(trained, threads=1) as model:
        found = needles(model.tokenizer, np.arange(100, 400), 128)
        logprobs, agreed = ask(model.score, found, 3)
        (said,) = model.score([found.ids[3].tolist()], 1, 1)
    count = found.answers[3]
    assert logprobs == pytest.approx([each.logprob for each in said[-count:]], abs=1e-3)
    assert agreed.tolist() == [each.token_id in each.top for each in said[-count:]]
