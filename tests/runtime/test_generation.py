import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.listed_files import list_files
from tokenizers import Tokenizer, decoders, models

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.errors import InputError
from llmc.runtime import Model, load
from llmc.runtime.detokenizer import Detokenizer
from llmc.runtime.sampling import SamplingParams

PROMPTS = [
    "def get",
    "import os\n\n\ndef main(",
    "class Error(Exception):\n",
    "The value of",
    "    return self._",
    "x = {",
]


def excerpts(count: int) -> list[str]:
    """Beginnings for the model to continue, of a text that it knows the kind of."""
    text = Path(json.decoder.__file__).read_text(encoding="utf-8")
    return [text[start : start + 60] for start in range(0, count * 500, 500)]


@pytest.fixture(scope="module")
def plain(trained: Path) -> Iterator[Any]:
    with load(trained, threads=1, speculative=False) as model:
        yield model


def test_one_prompt_gives_one_answer_and_several_a_list(plain: Model) -> None:
    one = plain.generate("def get", max_new_tokens=4)
    assert one.token_ids and one.prompt_tokens == len(plain.tokenizer.encode("def get").ids)
    several = plain.generate(["def ", "x"], max_new_tokens=4)
    assert len(several) == 2 and plain.generate([], max_new_tokens=4) == []


def test_greedy_is_what_the_torch_model_says(trained: Path, plain: Model) -> None:
    model = CausalLM.load(Checkpoint.open(trained))
    for prompt in PROMPTS[:3]:
        answer = plain.generate(prompt, max_new_tokens=24)
        ids = plain.tokenizer.encode(prompt).ids
        for token in answer.token_ids:
            assert model.logits(model.hidden(torch.tensor([ids]))[:, -1:]).argmax().item() == token
            ids.append(token)


@pytest.mark.parametrize("draft_tokens", [1, 3])
def test_speculation_does_not_change_greedy_text(trained: Path, plain: Model, draft_tokens: int) -> None:
    steps = tokens = 0
    with load(trained, threads=1, draft_tokens=draft_tokens) as model:
        for prompt in [*PROMPTS, *excerpts(12)]:
            expected, answer = plain.generate(prompt, max_new_tokens=40), model.generate(prompt, max_new_tokens=40)
            assert answer.token_ids == expected.token_ids and answer.finish_reason == expected.finish_reason
            assert 0 <= answer.accepted <= answer.drafted <= draft_tokens * answer.steps
            # The prompt's pass gives the first token, every later pass one of its own and what it accepted.
            if answer.finish_reason == "length":
                assert len(answer.token_ids) == 1 + answer.steps + answer.accepted
            assert expected.drafted == 0
            steps, tokens = steps + answer.steps, tokens + len(answer.token_ids)
    assert tokens / steps > 1.3  # the MTP layer is trained: drafts are accepted


def test_a_repetition_penalty_counts_drafts_too(trained: Path, plain: Model) -> None:
    options = {"max_new_tokens": 40, "repetition_penalty": 1.2}
    with load(trained, threads=1, draft_tokens=3) as model:
        for prompt in PROMPTS:
            expected = plain.generate(prompt, **options)
            assert model.generate(prompt, **options).token_ids == expected.token_ids
            assert expected.token_ids != plain.generate(prompt, max_new_tokens=40).token_ids


@pytest.mark.parametrize("prefill", [256, 7])
def test_drafts_are_those_of_the_torch_mtp_layer(trained: Path, monkeypatch: pytest.MonkeyPatch, prefill: int) -> None:
    """Counted on whole texts, without caches: how often the MTP layer foresees the token after the next."""
    torch_model = CausalLM.load(Checkpoint.open(trained))
    with load(trained, threads=1) as model:
        monkeypatch.setattr(model.backend, "max_prefill_tokens", prefill)
        for prompt in excerpts(6):
            answer = model.generate(prompt, max_new_tokens=40)
            start = model.tokenizer.encode(prompt).ids
            ids = torch.tensor([[*start, *answer.token_ids]])
            foreseen = torch_model.logits(torch_model.mtp(ids[:, 1:], torch_model.hidden(ids[:, :-1]))).argmax(-1)[0]
            drafted = accepted = steps = 0
            known, end = len(start) + 1, ids.shape[1]
            while known < end:
                hit = known + 1 < end and bool(foreseen[known - 2] == ids[0, known])
                drafted += known + 1 < end
                accepted, steps, known = accepted + hit, steps + 1, known + 1 + hit
            assert answer.finish_reason == "length"
            assert (answer.drafted, answer.accepted, answer.steps) == (drafted, accepted, steps)


def test_with_int8_activations_only_ties_depend_on_speculation(trained_level_4: Path) -> None:
    with load(trained_level_4, threads=1) as model, load(trained_level_4, threads=1, speculative=False) as plain:
        for prompt in excerpts(12):
            expected, answer = (
                plain.generate(prompt, max_new_tokens=40).token_ids,
                model.generate(prompt, max_new_tokens=40).token_ids,
            )
            if expected != answer:
                pairs = list(zip(expected, answer, strict=False))
                where = next(place for place, (one, other) in enumerate(pairs) if one != other)
                ids = np.array([plain.tokenizer.encode(prompt).ids + expected[:where]])
                index = np.array([[ids.shape[1] - 1]])
                logits, _ = plain.backend.forward("main", plain.backend.new_cache(1), ids, np.array([0]), index)
                assert abs(np.diff(logits[0, 0, list(pairs[where])])) < 0.1


def test_speculation_keeps_the_distribution_of_sampled_text(trained: Path) -> None:
    """Four tokens drawn from the best two each: all 16 answers come up as often as the model's probabilities say."""
    prompt, drawn, rounds = "    return self.", {"temperature": 1.5, "top_k": 2}, 600
    with load(trained, threads=1, draft_tokens=2) as model:
        start = model.tokenizer.encode(prompt).ids

        def following(tokens: Any) -> NDArray[Any]:
            ids = np.array([[*start, *tokens]])
            index = np.array([[ids.shape[1] - 1]])
            return model.backend.forward("main", model.backend.new_cache(1), ids, np.array([0]), index)[0][0, 0]

        expected: dict[tuple[int, ...], float] = {(): float(rounds)}
        for _ in range(4):
            expected = {
                (*tokens, int(token)): count * probability[token]
                for tokens, count in expected.items()
                for probability in [SamplingParams(**drawn).distribution(following(tokens))]
                for token in np.flatnonzero(probability)
            }
        answers = [model.generate(prompt, max_new_tokens=4, seed=seed, **drawn) for seed in range(rounds)]
        assert 0.2 < sum(a.accepted for a in answers) / sum(a.drafted for a in answers) < 0.95
        found = Counter(tuple(answer.token_ids) for answer in answers)
    assert found.keys() <= expected.keys() and len(expected) == 16 and min(expected.values()) > 2
    statistic = sum((found[tokens] - count) ** 2 / count for tokens, count in expected.items())
    assert statistic < 37.7  # the 99.9 % quantile of chi-square with 15 degrees of freedom


def test_a_batch_of_unequal_prompts_is_each_alone(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [plain.generate(prompt, max_new_tokens=24) for prompt in PROMPTS]
    assert plain.generate(PROMPTS, max_new_tokens=24) == alone
    monkeypatch.setattr(plain.backend, "batch", len(PROMPTS) - 2)  # takes two rounds
    assert plain.generate(PROMPTS, max_new_tokens=24) == alone
    monkeypatch.setattr(plain.backend, "batch", 1)
    assert plain.generate(PROMPTS, max_new_tokens=24) == alone


def test_with_int8_activations_only_close_calls_depend_on_the_batch(trained_level_4: Path) -> None:
    with load(trained_level_4, threads=1, speculative=False) as model:
        prompts = excerpts(12)
        batch = model.generate(prompts, max_new_tokens=24, logprobs=2)
        for prompt, together in zip(prompts, batch, strict=True):
            alone = model.generate(prompt, max_new_tokens=24, logprobs=2)
            for one, other in zip(alone.logprobs, together.logprobs, strict=False):
                if one.token_id != other.token_id:  # the two likeliest changed places
                    first, second = one.top.values()
                    assert first - second < 0.2 and other.token_id in one.top
                    break
                assert one.logprob == pytest.approx(other.logprob, abs=0.5)


def test_long_prompts_are_fed_in_parts(trained: Path, plain: Model) -> None:
    text = "".join(f"value_{i} = {i}\n" for i in range(120))
    ids = plain.tokenizer.encode(text).ids
    assert len(ids) > 2 * plain.backend.max_prefill_tokens
    model = CausalLM.load(Checkpoint.open(trained))
    expected = model.logits(model.hidden(torch.tensor([ids]))[:, -1:]).argmax().item()
    with load(trained, threads=1) as speculative:
        for loaded in (plain, speculative):
            assert loaded.generate(text, max_new_tokens=3).token_ids[0] == expected
        assert (
            speculative.generate(text, max_new_tokens=20).token_ids == plain.generate(text, max_new_tokens=20).token_ids
        )
    batch = plain.generate([text, "def "], max_new_tokens=3)
    assert batch[0].token_ids[0] == expected
    assert batch[1].token_ids == plain.generate("def ", max_new_tokens=3).token_ids


def test_steps_get_shorter_as_the_cache_gets_longer(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the scores of attention, tokens x entries, do not outgrow the memory."""
    text = "".join(f"value_{i} = {i}\n" for i in range(40))
    expected = plain.generate([text, "def "], max_new_tokens=5)
    seen, forward = [], plain.backend.forward

    def watched(
        graph: str, cache: Any, ids: NDArray[Any], position: NDArray[Any], *rest: Any
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        seen.append((ids.shape[1], ids.size * (int(position.max()) + ids.shape[1])))
        return forward(graph, cache, ids, position, *rest)

    monkeypatch.setattr(plain.backend, "forward", watched)
    monkeypatch.setattr(plain.backend, "max_attention_scores", 10_000)
    assert plain.generate([text, "def "], max_new_tokens=5) == expected
    widths = [width for width, _ in seen[:-4]]
    assert max(scores for _, scores in seen) <= 10_000
    assert widths[0] > 2 * widths[-2] and sum(widths) == expected[0].prompt_tokens


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_p": 0.9, "top_k": 50}]
)
def test_streamed_pieces_are_the_generated_text(trained: Path, options: dict[str, Any]) -> None:
    with load(trained, threads=1) as model:
        pieces = list(model.stream("def parse(", max_new_tokens=40, **options))
        assert "".join(pieces) == model.generate("def parse(", max_new_tokens=40, **options).text
        assert len(pieces) > 10


def test_characters_cut_across_tokens_are_not_streamed_in_halves(dense: Path) -> None:
    with load(dense, threads=1) as model:
        said = "naïve – 日本語"
        tokens = model.tokenizer.encode(said).ids  # one byte each
        nothing = np.zeros(model.artifact.vocab_size, np.float32)
        for said_tokens, text in ((tokens, said), (tokens[:-1], model.tokenizer.decode(tokens[:-1]))):
            answer = model._answer("a", SamplingParams(max_new_tokens=len(said_tokens)))
            for token in said_tokens:  # the second time the last character never completes
                assert "�" not in answer.text
                answer.take(token, nothing)
            assert answer.done and answer.text == text


def test_a_prompt_may_end_inside_of_a_character(dense: Path) -> None:
    with load(dense, threads=1) as model:
        tokens = model.tokenizer.encode("a😀b").ids
        prompt, rest = tokens[:-3], tokens[-3:]  # one byte of four is left
        assert "�" in model.tokenizer.decode(prompt)
        detokenizer = Detokenizer(model.tokenizer, prompt)
        assert "".join(map(detokenizer.push, rest)).endswith("b") and "😀" in "".join(
            map(Detokenizer(model.tokenizer, prompt).push, rest)
        )


def test_what_the_tokenizer_file_says_about_lengths_is_not_obeyed(dense: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dense, tmp_path / "copy")
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(copy / "tokenizer.json"))
    list_files(copy, "tokenizer.json")
    with load(copy, threads=1) as model, load(dense, threads=1) as other:
        assert model.encode("a" * 20) == other.encode("a" * 20) and model.encode("a") == other.encode("a")


def test_words_that_follow_the_prompt_keep_their_space() -> None:
    """Decoders of the SentencePiece kind drop the space of the first word that they see."""
    tokenizer = Tokenizer(models.WordLevel({"▁hello": 0, "▁world": 1, "s": 2}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([1, 2]) == "worlds"
    detokenizer = Detokenizer(tokenizer, [0])
    assert [detokenizer.push(1), detokenizer.push(2), detokenizer.rest()] == [" world", "s", ""]


def test_a_prompt_that_ends_in_a_space_gets_a_whole_word(plain: Model) -> None:
    ids = plain.tokenizer.encode("import ").ids
    assert plain.tokenizer.id_to_token(ids[-1]) == "Ġ"
    spaced = [token for text, token in plain.tokenizer.get_vocab().items() if text.startswith("Ġ")]
    position, index = np.array([0]), np.array([[len(ids) - 2]])
    logits, _ = plain.backend.forward("main", plain.backend.new_cache(1), np.array([ids[:-1]]), position, index)
    answer = plain.generate("import ", max_new_tokens=6)
    assert answer.token_ids[0] == max(spaced, key=lambda token: logits[0, 0, token])
    assert (
        answer.text
        == plain.tokenizer.decode(answer.token_ids)[1:]
        == "".join(plain.stream("import ", max_new_tokens=6))
    )
    assert plain.generate(["import ", "x = "], max_new_tokens=6)[0] == answer
    drawn = {plain.generate("import ", max_new_tokens=1, temperature=5.0, seed=seed).token_ids[0] for seed in range(20)}
    assert len(drawn) > 10 and drawn <= set(spaced)
    assert plain.generate("import  ", max_new_tokens=1).prompt_tokens == len(plain.tokenizer.encode("import  ").ids)


def test_end_of_text_stops_and_is_not_part_of_the_answer(dense: Path) -> None:
    with load(dense, threads=1) as model:
        free = model.generate("hello", max_new_tokens=12)
        model.artifact = dataclasses.replace(model.artifact, eos_token_ids=frozenset([free.token_ids[4]]))
        stopped = model.generate("hello", max_new_tokens=12)
        first = free.token_ids.index(free.token_ids[4])
        assert stopped.token_ids == free.token_ids[:first] and stopped.finish_reason == "stop"
        both = model.generate(["hello", "hello there"], max_new_tokens=12)
        assert both[0].token_ids == stopped.token_ids


def test_the_context_is_a_limit_that_can_be_reached_and_not_passed(dense: Path) -> None:
    with load(dense, threads=1) as model:
        prompt = "a" * 580
        room = 600 - len(model.tokenizer.encode(prompt).ids) + 1
        full = model.generate([prompt, "b"], max_new_tokens=room)
        assert len(full[0].token_ids) == room or full[0].finish_reason == "stop"
        alone = model.generate(prompt, max_new_tokens=room)
        assert alone.token_ids == full[0].token_ids
        with pytest.raises(InputError, match="do not fit the context of 600"):
            model.generate(prompt, max_new_tokens=room + 1)


def test_speculation_up_to_the_end_of_the_context(trained: Path) -> None:
    with load(trained, threads=1, draft_tokens=3) as model:
        text = "def f(x):\n    return x\n" * 200
        ids = model.tokenizer.encode(text).ids[1 : model.backend.context - 10]
        prompt = model.tokenizer.decode(ids)
        room = model.backend.context - len(model.tokenizer.encode(prompt).ids) + 1
        answer = model.generate(prompt, max_new_tokens=room)
        assert len(answer.token_ids) == room or answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a", {"temperature": -1.0}, "at least 0"),
        ("a", {"top_p": 0.0}, "above 0"),
        ("", {}, "prompt is empty"),
        ("a", {"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_bad_arguments(dense: Path, prompt: str, options: Any, message: str) -> None:
    with load(dense, threads=1) as model, pytest.raises(InputError, match=message):
        model.generate(prompt, **options)


def test_sampling_is_reproducible_by_seed_and_rows_have_their_own(trained: Path) -> None:
    with load(trained, threads=1, speculative=False) as model:
        first = model.generate(["def ", "def "], max_new_tokens=16, temperature=1.0, seed=5)
        again = model.generate(["def ", "def "], max_new_tokens=16, temperature=1.0, seed=5)
        assert first == again and first[0].token_ids != first[1].token_ids
        assert model.generate("def ", max_new_tokens=16, temperature=1.0, seed=6).token_ids == first[1].token_ids


def test_the_cache_is_written_in_place_and_not_copied(trained: Path) -> None:
    with load(trained, threads=1) as model:
        backend = model.backend
        cache = backend.new_cache(1)
        ids = np.array([[5, 6, 7]])
        zero = np.array([0])
        backend.forward("main", cache, ids, zero, np.array([[2]]))
        buffer = cache.buffers["past.0.latent"]
        assert np.abs(buffer[:, :, :3]).min(axis=-1).min() >= 0 and np.abs(buffer[:, :, :3]).sum() > 0
        assert (buffer[:, :, 3:] == 0).all()
        before = buffer.copy()
        backend.forward("main", cache, np.array([[8]]), np.array([3]), np.array([[0]]))
        assert cache.buffers["past.0.latent"] is buffer
        assert (buffer[:, :, :3] == before[:, :, :3]).all() and np.abs(buffer[:, :, 3]).sum() > 0


def test_the_cache_grows_and_taking_tokens_back_is_writing_over_them(trained: Path) -> None:
    with load(trained, threads=1) as model:
        backend = model.backend
        generator = np.random.default_rng(0)
        ids = generator.integers(3, 4000, (1, 400))

        def step(cache: Any, tokens: NDArray[Any], position: int) -> NDArray[Any]:
            index = np.array([[tokens.shape[1] - 1]])
            return backend.forward("main", cache, tokens, np.array([position]), index)[0][0, 0]

        straight, detour = backend.new_cache(1), backend.new_cache(1)
        step(straight, ids[:, :200], 0)
        step(detour, ids[:, :200], 0)
        step(detour, ids[:, 300:], 200)  # a wrong turn, taken back
        for start in (200, 300):
            a, b = (step(cache, ids[:, start : start + 100], start) for cache in (straight, detour))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert straight.capacity == 512
