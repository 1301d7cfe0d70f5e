"""Small tokenizers in the files of tiktoken and SentencePiece, trained here."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llmc.convert.tokenizer_files.comparison import TEXTS

_LETTERS = pre_tokenizers.ByteLevel.alphabet()
# The bytes that ByteLevel's letters stand for; those that cannot be seen come from U+0100 on.
_BYTES = {letter: ord(letter) for letter in _LETTERS if ord(letter) < 256}
_BYTES |= dict(zip(sorted(set(_LETTERS) - _BYTES.keys()), sorted({*range(256)} - {*_BYTES.values()}), strict=True))


@functools.cache
def ranks(size: int = 700) -> dict[bytes, int]:
    """Bytes, and what is merged most often in the samples."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(TEXTS * 2, trainers.BpeTrainer(vocab_size=size, initial_alphabet=_LETTERS))
    ordered = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return {bytes(_BYTES[letter] for letter in token): rank for token, rank in ordered}


def rank_file(tokens: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in tokens.items())


def sentencepiece(**options: Any) -> bytes:
    """A model of SentencePiece, of the samples, BPE with bytes as Llama's if nothing else is said."""
    from sentencepiece import SentencePieceTrainer

    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 1200,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "num_threads": 1,
    }
    written = io.BytesIO()
    lines = (line for text in TEXTS for line in text.splitlines() if line.strip())
    SentencePieceTrainer.train(sentence_iterator=lines, model_writer=written, **(settings | options))
    return written.getvalue()
