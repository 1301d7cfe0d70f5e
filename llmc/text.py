"""Calibration and check texts: documents, tokenized and cut into windows.

The two texts never share a document. `builtin:python-docs` is text that every CPython carries: the sources of
its standard library and its documentation topics, split by a hash of each document's name, which is also how the
embedded checkpoint's training text was split: its check text is text it has never seen. A text file is split by
position when it serves as both.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from llmc.calibration_recipe import PYTHON_DOCS, Calibration, Check, public_path
from llmc.documents import Chat, pieces, read_documents
from llmc.errors import InputError
from llmc.registry import unknown
from llmc.runtime.chat import ChatTemplate
from llmc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmc.convert.checkpoint import Checkpoint

# Tests, generated tables and build configuration are poor text.
_LEFT_OUT = ("test", "site-packages", "encodings", "config-", "_sysconfigdata", "pydoc_data")
_CHECK_ONE_IN = 5  # documents of a file that is both texts
_AT_ONCE = 1 << 19  # characters that are tokenized at once, which takes a hundred times their memory

Document: TypeAlias = str | Chat


@dataclass(frozen=True)
class Texts:
    """calibration [N, L] and check [M, L'], int64 token ids; `note` says where they come from."""

    calibration: np.ndarray
    check: np.ndarray
    note: str

    def key(self) -> list[str]:
        """A hash of every token."""
        parts = (self.calibration, self.check)
        return [hashlib.sha256(f"{part.shape}".encode() + part.tobytes()).hexdigest() for part in parts]


def read_texts(
    calibration: Calibration, check: Check, checkpoint: Checkpoint, base: Path, tokenizer: Tokenizer | None = None
) -> Texts:
    """Both texts of a recipe in folder `base`; InputError when one is missing or too short. tokenizer: another one than
    the checkpoint's files ask for.
    """
    require_texts(calibration, check, base)
    context = checkpoint.spec.max_position_embeddings
    same = calibration.text == check.text and check.text != PYTHON_DOCS
    names = public_path(calibration.text), public_path(check.text)
    note = f"calibration {names[0]}, check {names[1]}, which share no document"
    if same:
        note = f"{names[1]}: every {_CHECK_ONE_IN}th piece for the check, the others for calibration"
    vocab_size = checkpoint.spec.vocab_size
    reader = _Reader(tokenizer or Tokenizer(checkpoint.path, vocab_size), vocab_size)
    windows, kinds = {}, {}
    for name, text, (count, length), seed in (
        ("calibration", calibration.text, calibration.windows(context), calibration.seed),
        ("check", check.text, check.windows(context), 0),
    ):
        found, kinds[name] = _documents(text, base, same)
        documents = [body for held_out, body in found if held_out in (None, name == "check")]
        random.Random(seed).shuffle(documents)
        windows[name] = reader.windows(name, text, documents, count, length, same)
    told = [f"{name}: {kind}" for name, kind in kinds.items() if kind.startswith("records")]
    return Texts(windows["calibration"], windows["check"], "; ".join([note, *told]))


class _Reader:
    """Documents as tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.end = list(tokenizer.eos_token_ids[:1])
        self._template: ChatTemplate | None = None

    def windows(
        self, name: str, text: str, documents: Sequence[Document], count: int, length: int, same: bool
    ) -> np.ndarray:
        """[count, length] int64: documents one after the other, each with the model's beginning, if it has one, and its
        end token, cut where a window is full. No more is tokenized than is needed.
        """
        ids: list[int] = []
        for document in documents:
            ids += self._tokens(document, count * length - len(ids))
            if len(ids) >= count * length:
                break
        if len(ids) < count * length:
            share = f" for the {name}" if same else ""
            raise InputError(
                f"{name}.text {text} has {len(ids):,} tokens{share}, but {count} windows of {length} need "
                f"{count * length:,}; ask for fewer or shorter ones, or give more text"
            )
        if max(ids) >= self.vocab_size:
            raise InputError(
                f"{self.tokenizer.path}: makes token {max(ids)}, but the model knows {self.vocab_size}; "
                "not its tokenizer"
            )
        return np.array(ids[: count * length], np.int64).reshape(count, length)

    def _tokens(self, document: Document, wanted: int) -> list[int]:
        """All of a document, or at least so many tokens of it."""
        text, bare = (document, False) if isinstance(document, str) else self._chat(document)
        ids: list[int] = []
        for part in pieces(text, _AT_ONCE, within_lines=True):
            ids += self.tokenizer.encode(part, add_special_tokens=not (bare or ids)).ids
            if len(ids) >= wanted:
                return ids
        # Templates end a chat themselves, and perhaps its line.
        ended = not ids or any(token in self.tokenizer.eos_token_ids for token in ids[-2:])
        return ids if ended else ids + self.end

    def _chat(self, messages: Chat) -> tuple[str, bool]:
        """Its text, and whether a template wrote it, with all special tokens. A model without one was made for text."""
        origin, folder = self.tokenizer.origin, self.tokenizer.path.parent
        if self._template is None and not ChatTemplate.find(origin):
            contents = [message.get("content") for message in messages]
            if not all(isinstance(content, str) for content in contents):
                raise InputError(f"{folder}: its tokenizer has no chat template for messages that hold more than text")
            return "\n".join(map(str, contents)), False
        self._template = self._template or ChatTemplate(origin)
        return self._template.render(messages, add_generation_prompt=False), True


def require_texts(calibration: Calibration, check: Check, base: Path) -> None:
    """InputError, with the key of the recipe, for a text that is no file: before anything is read or downloaded."""
    for key, text in (("calibration", calibration.text), ("check", check.text)):
        if text.startswith("builtin:"):
            if text != PYTHON_DOCS:
                raise InputError(f"{key}.text: {unknown('text', text, [PYTHON_DOCS])}")
        elif not (path := base / Path(text).expanduser()).exists():
            raise InputError(f"{key}.text: there is no file {path}; name your own text, or {PYTHON_DOCS}")


def _documents(text: str, base: Path, split: bool) -> tuple[list[tuple[bool | None, Document]], str]:
    """(held out for the check?, document), None: the whole text serves one purpose; and what they are."""
    if text == PYTHON_DOCS:
        return list(python_documents()), ""
    read = read_documents(base / Path(text).expanduser())
    found = read.found
    if split and len(found) < _CHECK_ONE_IN and (whole := [each for each in found if isinstance(each, str)]):
        # Each purpose needs some of it.
        size = -(-sum(map(len, whole)) // _CHECK_ONE_IN)
        found = [piece for each in whole for piece in pieces(each, max(1, size), within_lines=True)]
    if split and len(found) < 2:
        raise InputError(f"text {text}: too few documents ({len(found)}) for both calibration and check; give more")
    return [((number % _CHECK_ONE_IN == 0) if split else None, each) for number, each in enumerate(found)], read.kind


def python_documents() -> Iterator[tuple[bool, str]]:
    """(held out?, text) of the running Python's standard library modules and documentation topics."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if name.startswith(_LEFT_OUT) or "/test" in name or "_test/" in name:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if 200 <= len(text) <= 400_000:
            yield _held_out(name, 25), text
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield _held_out(name, 12), text


def _held_out(name: str, one_in: int) -> bool:
    return int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % one_in == 0
