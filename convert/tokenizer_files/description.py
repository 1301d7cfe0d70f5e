"""A tokenizer as both kinds of files describe it, on its way into tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Part = dict[str, Any]
LONGEST = 1000  # characters of a token; no known one has so many, and the work to find its parts grows with the square


class AddedToken(NamedTuple):
    """A token that texts spell out as a whole. normalized: searched for after the normalizer, not before it."""

    number: int
    text: str
    special: bool
    normalized: bool = False

    def to_json(self) -> Part:
        return {
            "id": self.number,
            "content": self.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": self.normalized,
            "special": self.special,
        }


@dataclass(frozen=True)
class GivenFile:
    """What a tokenizer.json is made of.

    Attributes:
        data: What is in the file.
        vocab_size: Rows of the embedding.
        settings: tokenizer_config.json.
        special: `bos_token`, `eos_token`, … → its text, as the checkpoint's files say.
        listed: The tokens that these files list, by number.
    """

    path: Path
    data: bytes
    vocab_size: int
    settings: Mapping[str, Any]
    special: Mapping[str, str]
    listed: Sequence[AddedToken]


@dataclass(frozen=True)
class Description:
    """The parts of a tokenizer.json.

    Attributes:
        pieces: Texts of tokens, by which a comparison is sure to meet all of them.
        begins_with: Tokens in front of every text, and `ends_with` behind it.
        settings: For tokenizer_config.json where it does not say so itself: `bos_token`, … → its text.
        strips: Whether white space at the very beginning of a text is no more than the space that is put there.
    """

    model: Part
    added: Sequence[AddedToken]
    pieces: Sequence[str]
    decoder: Part
    normalizer: Part | None = None
    pre_tokenizer: Part | None = None
    begins_with: Sequence[AddedToken] = ()
    ends_with: Sequence[AddedToken] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    strips: bool = False

    def to_json(self) -> bytes:
        described = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [token.to_json() for token in sorted(self.added, key=lambda token: token.number)],
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self._template(),
            "decoder": self.decoder,
            "model": self.model,
        }
        return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()

    def _template(self) -> Part:
        """What surrounds one text, and two; written out even where that is nothing, since transformers fills a gap."""

        def around(letter: str, kind: int) -> list[Part]:
            first, last = (
                [{"SpecialToken": {"id": token.text, "type_id": kind}} for token in tokens]
                for tokens in (self.begins_with, self.ends_with)
            )
            return [*first, {"Sequence": {"id": letter, "type_id": kind}}, *last]

        tokens = {token.text: token.number for token in (*self.begins_with, *self.ends_with)}
        return {
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": [*around("A", 0), *around("B", 1)],
            "special_tokens": {text: {"id": text, "ids": [n], "tokens": [text]} for text, n in tokens.items()},
        }


class Original(Protocol):
    """The library that a file was written for."""

    name: str

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Without tokens in front or behind, but with those that texts spell out."""
        ...

    def same(self, wanted: Sequence[int], found: Sequence[int]) -> bool:
        """Whether the tokens that tokenizer.json makes are as good as its own."""
        ...

    def decode(self, ids: Sequence[int]) -> str | None:
        """The text of tokens; None where the library has none for them."""
        ...
