"""Tokens to text while they come: a character is held back until all of its bytes are there."""

from __future__ import annotations

from tokenizers import Tokenizer

_PART = "\N{REPLACEMENT CHARACTER}"  # what decoders make of a part of a character
_LOOK_BACK = 8  # tokens of the prompt; decoders decide by what is in front whether a word starts with a space


class Detokeniser:
    """Continues the text of a prompt."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self.tokenizer = tokenizer
        self._before, self._pending = prompt[-_LOOK_BACK:], list[int]()

    def push(self, token: int) -> str:
        """The text that is certain after this token; it may be empty."""
        self._pending.append(token)
        text = self._held()
        if not text or text.endswith(_PART):
            return ""
        self._before, self._pending = self._pending, []
        return text

    def rest(self) -> str:
        """The text of what was held back: at the end, bytes that never became a character. Gives it once."""
        text = self._held() if self._pending else ""
        self._pending = []
        return text

    def _held(self) -> str:
        # A prompt may end inside of a character, which then is new.
        before = self.tokenizer.decode(self._before).rstrip(_PART)
        return self.tokenizer.decode([*self._before, *self._pending])[len(before) :]
