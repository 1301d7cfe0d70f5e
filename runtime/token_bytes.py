"""What a single token stands for: bytes, which need not be whole characters."""

from __future__ import annotations

from llmc.runtime.detokenizer import BYTE, LETTERS
from llmc.runtime.tokenizer import Tokenizer

_FRONT = "a"  # with something in front, a decoder keeps the space that a word's token begins with


class TokenBytes:
    """The bytes of tokens, in the middle of a text; of one that is never shown, its name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.decoder
        decoder = tokenizer.decoder
        self._by_level = decoder is not None and decoder.decode(["Ã©"]) == "é"
        self._by_fallback = decoder is not None and decoder.decode(["<0x41>"]) == "A"
        self._front = len(decoder.decode([_FRONT])) if decoder else 0
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        """Of one token; none for a number that stands for nothing."""
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def _find(self, token: int) -> bytes:
        written = self._tokenizer.id_to_token(token)
        if written is None:
            return b""
        if self._decoder is None or not self._tokenizer.decode([token]):
            return self._byte(written) or written.encode()
        if self._by_level and all(letter in LETTERS for letter in written):
            return bytes(LETTERS[letter] for letter in written)
        return self._byte(written) or self._decoder.decode([_FRONT, written])[self._front :].encode()

    def _byte(self, written: str) -> bytes | None:
        """Of a token that stands for one byte."""
        match = BYTE.fullmatch(written) if self._by_fallback else None
        return bytes([int(match[1], 16)]) if match else None


def shown(data: bytes) -> str:
    r"""A token's bytes as OpenAI's interface writes them in log-probabilities: text, or `bytes:\xe2\x80`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
