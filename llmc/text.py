"""Calibration and check texts: documents, tokenised and cut into windows.

The two texts never share a document. `builtin:python-docs` is text that every CPython carries: the sources of
its standard library and its documentation topics, split by a hash of each document's name, which is also how the
embedded checkpoint's training text was split: its check text is text it has never seen. A text file is split by
position when it serves as both.
"""

from __future__ import annotations

import hashlib
import io
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmc.errors import InputError
from llmc.files import open_regular
from llmc.recipe import PYTHON_DOCS, Calibration, Check, public_path, unknown

if TYPE_CHECKING:
    from llmc.convert.checkpoint import Checkpoint

# Tests, generated tables and build configuration are poor text.
_LEFT_OUT = ("test", "site-packages", "encodings", "config-", "_sysconfigdata", "pydoc_data")
_DOCUMENT_CHARACTERS = 8000  # of a text file
_CHECK_ONE_IN = 5  # documents of a file that is both texts


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


def read_texts(calibration: Calibration, check: Check, checkpoint: Checkpoint, base: Path) -> Texts:
    """Both texts of a recipe in folder `base`; InputError when one is missing or too short."""
    context = checkpoint.spec.max_position_embeddings
    same = calibration.text == check.text and check.text != PYTHON_DOCS
    names = public_path(calibration.text), public_path(check.text)
    note = f"calibration {names[0]}, check {names[1]}, which share no document"
    if same:
        note = f"{names[1]}: every {_CHECK_ONE_IN}th piece for the check, the others for calibration"
    tokenizer = _Tokenizer(checkpoint)
    windows = {}
    for name, text, (count, length), seed in (
        ("calibration", calibration.text, calibration.windows(context), calibration.seed),
        ("check", check.text, check.windows(context), 0),
    ):
        documents = [body for held_out, body in _documents(text, base, same) if held_out in (None, name == "check")]
        random.Random(seed).shuffle(documents)
        windows[name] = tokenizer.windows(name, text, documents, count, length)
    return Texts(windows["calibration"], windows["check"], note)


class _Tokenizer:
    def __init__(self, checkpoint: Checkpoint) -> None:
        from tokenizers import Tokenizer

        path = checkpoint.path / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{path}: missing; a model without it can be neither calibrated nor run")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
            self.tokenizer.no_truncation()  # whatever a training run has left in the file
            self.tokenizer.no_padding()
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path}: not a tokenizer ({error}); download it again") from error
        self.path, self.vocab_size = path, checkpoint.spec.vocab_size
        self.end = list(checkpoint.spec.eos_token_ids[:1])

    def windows(self, name: str, text: str, documents: list[str], count: int, length: int) -> np.ndarray:
        """[count, length] int64: documents one after the other, each with the tokenizer's own beginning and the
        model's end token, cut where a window is full."""
        ids: list[int] = []
        for document in documents:
            if len(ids) >= count * length:
                break
            ids += self.tokenizer.encode(document).ids + self.end
        if len(ids) < count * length:
            raise InputError(
                f"{name}.text {text} has {len(ids):,} tokens, but {count} windows of {length} need {count * length:,}; "
                "ask for fewer or shorter ones, or give more text"
            )
        if max(ids) >= self.vocab_size:
            raise InputError(
                f"{self.path}: makes token {max(ids)}, but the model knows {self.vocab_size}; not its tokenizer"
            )
        return np.array(ids[: count * length], np.int64).reshape(count, length)


def _documents(text: str, base: Path, split: bool) -> Iterator[tuple[bool | None, str]]:
    """(held out for the check?, document); None: the whole text serves one purpose."""
    if text == PYTHON_DOCS:
        yield from python_documents()
    elif text.startswith("builtin:"):
        raise InputError(f"text {text}: {unknown(text, 'text', [PYTHON_DOCS])}")
    else:
        for number, piece in enumerate(_pieces(base / Path(text).expanduser())):
            yield (number % _CHECK_ONE_IN == 0) if split else None, piece


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


def _pieces(path: Path) -> list[str]:
    """A text file, cut at line ends into documents of about 8,000 characters."""
    with open_regular(path) as file:
        try:
            text = io.TextIOWrapper(file, encoding="utf-8").read()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"text {path}: cannot be read as UTF-8 text ({error})") from error
    pieces, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if len(current) >= _DOCUMENT_CHARACTERS:
            pieces.append(current)
            current = ""
    return [*pieces, current] if current.strip() else pieces
