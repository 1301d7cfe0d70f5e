"""Tokens to text while they come: a character is held back until all of its bytes are there.

The pieces make up what the tokenizer's decoder says of prompt and answer, without what it says of the prompt. Two
kinds of tokens hold parts of characters: `<0xEC>`, which ByteFallback decoders read, and the letters that ByteLevel
decoders have for bytes. Decoders make U+FFFD of a part, and ByteFallback of all bytes that stand beside it, even those
of whole characters; `DecodeStream` of tokenizers inherits that. So parts are kept away from the decoder here.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

from llmc.runtime.tokenizer import Tokenizer

_LOOK_BACK = 8  # pieces that decoders see again; they decide by what is in front whether a word starts with a space
_FRONT = "a"  # stands for all that is before those: what follows is not the beginning of a text
BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_PART = "\N{REPLACEMENT CHARACTER}"
Pieces = list[str]  # of tokens, as decoders take them
Cut = Callable[[Pieces, str], tuple[bool, list[Pieces], Pieces]]


class Detokenizer:
    """Continues the text of a prompt. A character that the prompt has only begun belongs to the answer that ends it."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.decoder
        self._cut = self._kind()
        self._before: list[Pieces] = []  # whole characters each
        self._part: Pieces = []  # the bytes of a character that is not complete
        last: list[str] = []
        for token in reversed(prompt):
            if (written := self._written(token)) is not None:
                last.append(written)
            if len(last) > _LOOK_BACK:
                break
        self._front = [_FRONT] if len(last) > _LOOK_BACK else []
        for written in reversed(last[:_LOOK_BACK]):
            _, whole, self._part = self._cut(self._part, written)
            self._before += whole
        self._prompts = self._part  # as much of the part as the prompt ends in

    def push(self, token: int) -> str:
        """The text that is certain after this token; it may be empty."""
        written = self._written(token)
        if written is None:
            return ""
        given_up, whole, self._part = self._cut(self._part, written)
        return self._text(given_up, whole) if whole else ""

    def rest(self) -> str:
        """The text of what was held back: at the end, bytes that never became a character. Gives it once."""
        part, self._part = self._part, []
        return self._text(True, [_given_up(part)]) if part else ""

    def _text(self, given_up: bool, whole: list[Pieces]) -> str:
        """What `whole` adds. The prompt's part of a character that was never completed is none of the answer."""
        prompts, self._prompts = self._prompts if given_up else [], []
        old = self._decode([*self._before, _given_up(prompts)])
        new = self._decode([*self._before, *whole])
        self._before += whole
        if len(self._before) > _LOOK_BACK:
            self._before, self._front = self._before[-_LOOK_BACK:], [_FRONT]
        return new[len(old) :]

    def _decode(self, pieces: list[Pieces]) -> str:
        flat = [*self._front, *(piece for each in pieces for piece in each)]
        return self._decoder.decode(flat) if self._decoder else " ".join(flat)

    def _written(self, token: int) -> str | None:
        """As the vocabulary writes it; None for what is not shown, as are special tokens."""
        alone = self._tokenizer.decode([token])
        hidden = not alone and self._tokenizer.decode([token], skip_special_tokens=False)
        return None if hidden else self._tokenizer.id_to_token(token)

    def _kind(self) -> Cut:
        """How bytes are written, found by asking."""
        if self._decoder and self._decoder.decode(["<0x41>"]) == "A":
            return _cut_fallback
        if self._decoder and self._decoder.decode(["Ã©"]) == "é":
            return _cut_level
        return lambda _, written: (False, [[written]], [])


def _cut_fallback(part: Pieces, written: str) -> tuple[bool, list[Pieces], Pieces]:
    """A part of a character and what follows it → whether the part was given up; whole characters; a part."""
    if BYTE.fullmatch(written) is None:
        return bool(part), [*([_given_up(part)] if part else []), [written]], []
    together = [*part, written]
    try:
        _, used = codecs.utf_8_decode(bytes(int(each[3:5], 16) for each in together), "strict", False)
    except UnicodeDecodeError:
        if not part:
            return False, [_given_up(together)], []
        _, whole, rest = _cut_fallback([], written)
        return True, [_given_up(part), *whole], rest
    return False, [together] if used else [], [] if used else together


def _cut_level(part: Pieces, written: str) -> tuple[bool, list[Pieces], Pieces]:
    """The same for letters that stand for bytes. The decoder itself replaces parts, once it is given them."""
    if not all(letter in LETTERS for letter in written):  # an added token, which is text
        return bool(part), [*([part] if part else []), [written]], []
    together = "".join([*part, written])
    data = bytes(LETTERS[letter] for letter in together)
    text, used = codecs.utf_8_decode(data, "replace", False)
    given_up = bool(part) and text.startswith(_PART) and not data.startswith(_PART.encode())
    return given_up, [[together[:used]]] if used else [], list(together[used:])


def _given_up(part: Pieces) -> Pieces:
    """In place of bytes that make no character: U+FFFD for each `<0x..>`, which would spoil others beside it."""
    return [_PART if BYTE.fullmatch(each) else each for each in part]


def _letters() -> dict[str, int]:
    """The letter that byte-level vocabularies (GPT-2's `bytes_to_unicode`) write for a byte → the byte."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}  # these stand for themselves
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(others)}


LETTERS = _letters()
