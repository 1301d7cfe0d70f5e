"""Pieces of an answer against what decoders say of all of it at once, for tokenizers of every kind."""

import codecs
import string
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmc.runtime.detokenizer import Detokenizer
from llmc.runtime.sampling import SamplingParams
from llmc.runtime.sequence import GeneratedSequence
from llmc.runtime.stream import Stream

EMBEDDED = Path(__file__).parents[2] / "recipes/checkpoints/tiny-deepseek-v3/tokenizer.json"
PART = "\N{REPLACEMENT CHARACTER}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁the", "▁yes", "es", "é", "你好", *string.ascii_letters, *string.punctuation]


def each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return PART * (error.end - error.start), error.end


codecs.register_error("each byte", each_byte)


def made(model: Any, decoder: Any) -> Any:
    tokenizer = Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool>", "größe 日")])
    return tokenizer


def bpe(*words: Any) -> Any:
    return models.BPE(vocab={word: place for place, word in enumerate(dict.fromkeys(words))}, merges=[])


def word_level(*words: Any) -> Any:
    return models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[0])


SPACES, FALLBACK = decoders.Replace("▁", " "), decoders.ByteFallback()
LLAMA = decoders.Sequence([SPACES, FALLBACK, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
PIECES = models.WordPiece({word: place for place, word in enumerate(["a", "##b", ".", "n't", "日", "##本", "do"])})
TOKENIZERS = {
    "byte level": made(Tokenizer.from_file(str(EMBEDDED)).model, decoders.ByteLevel()),
    "Llama 2": made(bpe(*BYTES, *WORDS), LLAMA),
    "Gemma": made(bpe(*BYTES, *WORDS), decoders.Sequence([SPACES, FALLBACK, decoders.Fuse()])),
    "Metaspace, bytes": made(bpe(*BYTES, *WORDS), decoders.Sequence([decoders.Metaspace(), FALLBACK])),
    "Metaspace": made(word_level(*WORDS), decoders.Metaspace()),
    "WordPiece": made(PIECES, decoders.WordPiece()),
    "ends of words": made(bpe("a</w>", "b", "c</w>", "é"), decoders.BPEDecoder("</w>")),
    "no decoder": made(word_level("hello", "world", "é"), None),
}
LETTERS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def spell(tokenizer: Any, text: str) -> list[Any]:
    """One token a byte, where there are such; otherwise none."""
    if tokenizer.token_to_id(BYTES[0]) is not None:
        return [tokenizer.token_to_id(BYTES[byte]) for byte in text.encode()]
    written = "".join(word for word, _ in LETTERS.pre_tokenize_str(text))
    return [token for letter in written if (token := tokenizer.token_to_id(letter)) is not None]


def tokens_of(tokenizer: Any) -> Any:
    """Any tokens, among them many that spell what is not ASCII, characters cut short included."""
    anything = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=6)
    spelled = st.text("aé日😀 ▁안", max_size=4).map(lambda text: spell(tokenizer, text))
    cut = st.tuples(spelled, st.integers(0, 3)).map(lambda pair: pair[0][pair[1] :])
    parts = st.lists(st.one_of(anything, spelled, cut), max_size=6)
    return parts.map(lambda each: [token for part in each for token in part])


def decoded(tokenizer: Any, tokens: list[Any]) -> str:
    """What the decoder says of all at once. ByteFallback gives up a whole run of bytes for one that is wrong; that is
    put right by giving it what is whole and U+FFFD for each other byte."""
    if tokenizer.token_to_id(BYTES[0]) is None:
        return tokenizer.decode(tokens)
    visible = [tokenizer.id_to_token(token) for token in tokens if tokenizer.id_to_token(token) not in ("<s>", "</s>")]
    pieces = []
    for is_byte, run in groupby(visible, lambda piece: piece in BYTES):
        if is_byte:
            text = bytes(BYTES.index(piece) for piece in run).decode(errors="each byte")
            pieces += [p for c in text for p in ([c] if c == PART else [BYTES[byte] for byte in c.encode()])]
        else:
            pieces += run
    return tokenizer.decoder.decode(pieces)


def expected(tokenizer: Any, prompt: list[Any], answer: list[Any]) -> str:
    """What prompt and answer say together without what the prompt says; a character it only began is the answer's."""
    whole, said = decoded(tokenizer, [*prompt, *answer]), decoded(tokenizer, prompt)
    while not whole.startswith(said):
        assert said.endswith(PART)
        said = said[:-1]
    return whole[len(said) :]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_pieces_together_are_the_whole_text(name: str, data: Any) -> None:
    tokenizer = TOKENIZERS[name]
    prompt, answer = data.draw(tokens_of(tokenizer)), data.draw(tokens_of(tokenizer))
    detokenizer = Detokenizer(tokenizer, prompt)
    pieces = [detokenizer.push(token) for token in answer]
    text = expected(tokenizer, prompt, answer)
    assert "".join([*pieces, detokenizer.rest()]) == text and detokenizer.rest() == ""
    if PART not in tokenizer.decode([*prompt, *answer]) and PART not in tokenizer.decode(prompt):
        assert text == tokenizer.decode([*prompt, *answer])[len(tokenizer.decode(prompt)) :]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), stop=st.text("ab日es .", min_size=1, max_size=3))
def test_a_streamed_answer_is_the_whole_text_up_to_a_stop_string(name: str, data: Any, stop: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt, tokens = data.draw(tokens_of(tokenizer)), data.draw(tokens_of(tokenizer).filter(len))
    answer = GeneratedSequence(prompt, SamplingParams(stop=stop), len(tokens), tokenizer, frozenset())

    def steps(cancelled: Callable[..., Any]) -> Iterator[Any]:
        for token in tokens:
            if not answer.done:
                answer.take(token, np.zeros(1, np.float32))
                yield

    streamed = "".join(Stream(answer, steps))
    assert streamed == answer.generation().text == expected(tokenizer, prompt, tokens).partition(stop)[0]


def test_whole_characters_do_not_wait_for_what_comes() -> None:
    """And a byte that is wrong does not spoil those beside it, as it does for the decoder alone."""
    for name in ("byte level", "Llama 2", "Metaspace, bytes"):
        tokenizer = TOKENIZERS[name]
        tokens = [*spell(tokenizer, "안녕"), *spell(tokenizer, "é")[:1], *spell(tokenizer, "안")]
        detokenizer = Detokenizer(tokenizer, spell(tokenizer, "a"))
        pieces = [detokenizer.push(token) for token in tokens]
        assert pieces == ["", "", "안", "", "", "녕", "", PART, "", "안"], name


@pytest.mark.parametrize("name", ["Llama 2", "Gemma", "Metaspace, bytes", "byte level"])
@pytest.mark.parametrize("prompt", ["안", "日本語日本語日本語", "ok 👍\u200d👍", "é" * 40])
def test_an_answer_begins_with_what_was_said(name: str, prompt: str) -> None:
    """Prompts whose last characters are spelled in bytes: none of them comes up in the answer."""
    tokenizer = TOKENIZERS[name]
    word = tokenizer.token_to_id("▁yes") or tokenizer.token_to_id("Ġin")
    detokenizer = Detokenizer(tokenizer, spell(tokenizer, prompt))
    assert [detokenizer.push(word), detokenizer.push(word), detokenizer.rest()] == [
        *2 * [tokenizer.id_to_token(word).replace("▁", " ").replace("Ġ", " ")],
        "",
    ]
