"""Calibration and check texts: documents of one or several sources, tokenized and packed into windows.

The two texts never share a document, see text_sources.py.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmc.calibration_recipe import PYTHON_DOCS, SELF, SELF_TEXT, Calibration, Check, public_path
from llmc.contracts.manifest import TextRead, TextsRecord
from llmc.contracts.progress import Progress, Silent
from llmc.errors import InputError
from llmc.packing import Piece, Used, pack
from llmc.runtime.tokenizer import Tokenizer
from llmc.stages import key_of, module_version
from llmc.text_reader import Reader
from llmc.text_sources import CHECK_ONE_IN, documents_of, require_check_text, require_texts

if TYPE_CHECKING:
    from llmc.convert.checkpoint import Checkpoint
    from llmc.self_text import SelfText


class Texts:
    """Both texts of a build.

    Attributes:
        check: [M, L], int64 token ids, one source after the other
        check_read: what was read of each of these sources
        note: where the texts come from, in words
    """

    def __init__(self, calibration: Drawn, check: Sequence[Drawn], note: str) -> None:
        self.note, self._drawn = note, calibration
        self.check, self.check_read = _windows_by_source(check)
        self._folder: Path | None = None
        self._progress: Progress = Silent()

    @property
    def calibration(self) -> np.ndarray:
        """[N, L], int64 token ids; where the model writes some of it, it does so now."""
        return self._calibration[0]

    @property
    def read(self) -> dict[str, list[TextRead]]:
        """What was read of each source, for "calibration" and "check"."""
        return {"calibration": self._calibration[1], "check": self.check_read}

    @cached_property
    def _calibration(self) -> tuple[np.ndarray, list[TextRead]]:
        if not self._drawn.own:
            return self._drawn.windows(None, self._progress)
        with self._progress.stage("write the calibration text"):
            windows, read = self._drawn.windows(self._folder, self._progress)
        for each in read:
            self._progress.line(f"calibration: {told(each)}")
        return windows, read

    @property
    def is_own(self) -> bool:
        """Whether the model writes some of it."""
        return bool(self._drawn.own)

    @property
    def is_written(self) -> bool:
        """Whether all of the text is at hand; the model need not write any first."""
        return not self._drawn.own or "_calibration" in vars(self)

    def require(self, memory: int | None) -> None:
        """MachineError where the model is to write text, and has no room for that in so many bytes."""
        if self._drawn.own:
            self._drawn.own[0][2].require(memory)

    def write_into(self, folder: Path | None, progress: Progress) -> None:
        """What the model writes lies in this folder, for the case that a build is interrupted."""
        self._folder, self._progress = folder, progress

    def key(self) -> list[str]:
        """Hashes of what decides about every token: of the tokens, where no model has to write them first."""
        return [self._drawn.key() or _hash_of(self.calibration), _hash_of(self.check)]

    def record(self) -> TextsRecord:
        """For the artifact's manifest."""
        return TextsRecord(note=self.note, sha256=[_hash_of(self.calibration), _hash_of(self.check)], read=self.read)

    def lines(self) -> list[str]:
        """What was read, for people: a line per source."""
        read = self.read if self.is_written else {"check": self.check_read}
        return [f"{purpose}: {told(each)}" for purpose, found in read.items() for each in found]


def _hash_of(windows: np.ndarray) -> str:
    return hashlib.sha256(f"{windows.shape}".encode() + windows.tobytes()).hexdigest()


def told(read: TextRead) -> str:
    """What was read of a source, for people."""
    of = f" of {read.available:,}" if read.available is not None else ""
    one = (read.documents if read.available is None else read.available) == 1
    line = f"{read.text}: {read.tokens:,} tokens of {read.documents:,}{of} document{'' if one else 's'}"
    if read.cut:
        line += f"; {read.cut:,} chats lost their ends, {read.dropped:.1%} of the tokens of those taken"
    return line


def read_texts(
    calibration: Calibration, check: Check, checkpoint: Checkpoint, base: Path, tokenizer: Tokenizer | None = None
) -> Texts:
    """Both texts of a recipe in folder `base`; InputError when one is missing or too short. tokenizer: another one than
    the checkpoint's files ask for.
    """
    require_texts(calibration, check, base)
    context, vocab_size = checkpoint.spec.max_position_embeddings, checkpoint.spec.vocab_size
    reader = Reader(tokenizer or Tokenizer(checkpoint.path, vocab_size), vocab_size)
    calibrated, checked = ([each.text for each in part.sources] for part in (calibration, check))
    both = [text for text in calibrated if text in checked and text != PYTHON_DOCS]
    part = _Part("calibration", calibration.shares(context), *calibration.windows(context), calibration.seed)
    drawn = [part.draw(checkpoint, reader, base, both), *_check_parts(check, checkpoint, reader, base, both)]
    kinds = [f"{each.part.name}: {kind}" for each in drawn for kind in each.kinds if "records" in kind]
    note = _note(*([*map(public_path, texts)] for texts in (calibrated, checked, both)))
    return Texts(drawn[0], drawn[1:], "; ".join([note, *dict.fromkeys(kinds)]))


def read_check(
    check: Check, checkpoint: Checkpoint, base: Path, tokenizer: Tokenizer
) -> tuple[np.ndarray, list[TextRead]]:
    """Windows [M, L] int64 of a check text alone, one source after the other, and what was read of each."""
    require_check_text(check)
    reader = Reader(tokenizer, checkpoint.spec.vocab_size)
    return _windows_by_source(_check_parts(check, checkpoint, reader, base, ()))


def _check_parts(check: Check, checkpoint: Checkpoint, reader: Reader, base: Path, both: Sequence[str]) -> list[Drawn]:
    """One for each source, so that no window holds two of them."""
    context = checkpoint.spec.max_position_embeddings
    _, length = check.windows(context)
    parts = (_Part("check", [(text, count * length)], count, length, 0) for text, count in check.shares(context))
    return [part.draw(checkpoint, reader, base, both) for part in parts]


def _windows_by_source(drawn: Sequence[Drawn]) -> tuple[np.ndarray, list[TextRead]]:
    """Windows, one source after the other, and what was read of each."""
    found = [each.windows(None, Silent()) for each in drawn]
    read = [text.model_copy(update={"windows": len(windows)}) for windows, texts in found for text in texts]
    return np.concatenate([windows for windows, _ in found]), read


def _note(sources: Sequence[str], checked: Sequence[str], both: Sequence[str]) -> str:
    split = f"{' and '.join(both)}: every {CHECK_ONE_IN}th piece for the check, the others for calibration"
    if both and [*sources] == [*checked] == [*both] and len(both) == 1:
        return split
    note = f"calibration {' and '.join(sources)}, check {' and '.join(checked)}, which share no document"
    return f"{note} ({split})" if both else note


@dataclass(frozen=True)
class _Part:
    """The text of one purpose: `count` windows of `length` tokens, each source with its share of them."""

    name: str
    shares: Sequence[tuple[str, int]]
    count: int
    length: int
    seed: int

    def draw(self, checkpoint: Checkpoint, reader: Reader, base: Path, both: Sequence[str]) -> Drawn:
        """The documents that are needed. both: texts that serve the calibration and the check."""
        drawn = Drawn(self)
        for number, (text, wanted) in enumerate(self.shares):
            if text in (SELF, SELF_TEXT):
                from llmc.self_text import SelfText

                own_text = SelfText(checkpoint, reader.tokenizer, self.seed, self.length, text == SELF)
                drawn.own.append((number, wanted, own_text))
                drawn.available.append(None)
                continue
            found = documents_of(text, base, text in both)
            order = [at for at, out in enumerate(found.held_out) if out in (None, self.name == "check")]
            random.Random(self.seed).shuffle(order)
            own = list(reader.draw((found.found[at] for at in order), number, wanted, self.length))
            self._require(text, sum(len(each.tokens) for each in own), wanted, text in both)
            drawn.pieces += own
            drawn.available.append(len(order))
            drawn.kinds.append(found.kind)
        return drawn

    def _require(self, text: str, tokens: int, wanted: int, both: bool) -> None:
        if tokens >= wanted:
            return
        share = f" for the {self.name}" if both else ""
        needed = f"but {self.count} windows of {self.length} need {wanted:,}"
        less = ""
        if len(self.shares) > 1:
            needed = f"but its share of {self.count} windows of {self.length} is {wanted:,}"
            less = ", give it less weight"
        raise InputError(
            f"{self.name}.text {text} has {tokens:,} tokens{share}, {needed}; ask for fewer or shorter ones{less}, or "
            "give more text"
        )


@dataclass
class Drawn:
    """Documents of a part, of which its windows are packed. own: (number of the source, tokens, writer) of what the
    model itself is to write.
    """

    part: _Part
    pieces: list[Piece] = field(default_factory=list)
    available: list[int | None] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    own: list[tuple[int, int, SelfText]] = field(default_factory=list)

    def windows(self, folder: Path | None, progress: Progress) -> tuple[np.ndarray, list[TextRead]]:
        """[N, L] int64, and what they hold of each source."""
        part, written = self.part, list[Piece]()
        for number, wanted, own in self.own:
            written += own.pieces(number, wanted, folder, progress)
        windows, used = pack([*self.pieces, *written], part.count, part.length, part.seed)
        counts = [used.get(number, Used()) for number in range(len(part.shares))]
        return windows, [_read(*each) for each in zip(part.shares, self.available, counts, strict=True)]

    def key(self) -> str | None:
        """A hash of what decides about windows that are not written yet; None: they are known."""
        if not self.own:
            return None
        part, pieces = self.part, [vars(each) for each in self.pieces]
        own = [(number, wanted, writer.whole) for number, wanted, writer in self.own]
        code = [module_version(f"llmc.{name}") for name in ("self_text", "packing")]
        return key_of(pieces, own, part.count, part.length, part.seed, code)


def _read(share: tuple[str, int], available: int | None, used: Used) -> TextRead:
    dropped = round(used.dropped / max(1, used.tokens + used.dropped), 6)
    counts = {"documents": used.documents, "tokens": used.tokens, "cut": used.cut}
    return TextRead(text=public_path(share[0]), available=available, dropped=dropped, **counts)
