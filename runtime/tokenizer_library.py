"""A tokenizer.json in the library `tokenizers`: in this process, or in one with limits where it might do harm.

Whatever the library raises becomes InputError: plain Exception, and Rust's panics, which are no Exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as Library

from llmc.errors import InputError
from llmc.runtime.confined import Confined
from llmc.runtime.confined_process import prepare
from llmc.runtime.special_tokens import Added

_SECONDS, _MEMORY = 5, 1 << 30  # of one that runs confined
_CHARACTERS_A_SECOND = 50_000  # that it is given more time for


class Methods(Protocol):
    """encode: without tokens in front or behind. join: what the decoder makes of tokens in their spelling."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...
    def join(self, tokens: list[str]) -> str: ...
    def id_to_token(self, token: int) -> str | None: ...
    def token_to_id(self, token: str) -> int | None: ...
    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]: ...


def _guarded(path: Path, failure: str, work: Callable[[], Any]) -> Any:
    """InputError for whatever the library raises: plain Exception, or Rust's panics, which are no Exception."""
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{path}: {failure} ({error}); download it again") from error


class Here(Methods):
    """In this process."""

    def __init__(self, path: Path, data: bytes, added: Sequence[Added]) -> None:
        self.path = path
        self.library = _guarded(path, "not a tokenizer", lambda: Library.from_buffer(data))
        self._call(lambda: prepare(self.library, added))

    def encode(self, text: str) -> list[int]:
        return self._call(lambda: self.library.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._call(lambda: self.library.decode(ids, skip_special_tokens))

    def join(self, tokens: list[str]) -> str:
        return self._call(lambda: self.library.decoder.decode(tokens))

    def id_to_token(self, token: int) -> str | None:
        return self._call(lambda: self.library.id_to_token(token))

    def token_to_id(self, token: str) -> int | None:
        return self._call(lambda: self.library.token_to_id(token))

    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
        return self._call(lambda: self.library.get_vocab(with_added_tokens))

    def _call(self, work: Callable[[], Any]) -> Any:
        return _guarded(self.path, "this tokenizer fails", work)


class Apart(Methods):
    """In a process with limits."""

    def __init__(self, path: Path, added: Sequence[Added]) -> None:
        self.path, self._added, self._process = path, added, Confined(_SECONDS, _MEMORY)
        self.token_to_id("")  # whether it can be opened

    def encode(self, text: str) -> list[int]:
        return self._ask("encode", text, None, False, False, seconds=len(text) / _CHARACTERS_A_SECOND)

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._ask("decode", ids, skip_special_tokens)

    def join(self, tokens: list[str]) -> str:
        return self._ask("decoder.decode", tokens)

    def id_to_token(self, token: int) -> str | None:
        return self._ask("id_to_token", token)

    def token_to_id(self, token: str) -> int | None:
        return self._ask("token_to_id", token)

    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
        return self._ask("get_vocab", with_added_tokens)

    def _ask(self, method: str, *arguments: Any, seconds: float = 0) -> Any:
        request = {"path": str(self.path), "added": self._added, "method": method, "arguments": arguments}
        reply = self._process.ask("tokenizer", seconds, **request)
        if "error" in reply:
            raise InputError(f"{self.path}: this tokenizer fails ({reply['error']}); download it again")
        return reply["result"]
