"""Where texts come from: files, data sets of a hub, and what every CPython carries.

`builtin:python-docs` are the sources of Python's standard library and its documentation topics, split by a hash of each
document's name, which is also how the embedded checkpoint's training text was split: its check text is text it has
never seen. A text file is split by position when it serves as both texts.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmc.calibration_recipe import PYTHON_DOCS, SELF, SELF_TEXT, Calibration, Check
from llmc.documents import Documents, pieces, read_documents
from llmc.errors import InputError
from llmc.hub_texts import HUB, DataSet, hub_documents
from llmc.mixes import MIX
from llmc.records import Document
from llmc.registry import unknown

# Tests, generated tables and build configuration are poor text.
_LEFT_OUT = ("test", "site-packages", "encodings", "config-", "_sysconfigdata", "pydoc_data")
CHECK_ONE_IN = 5  # documents of a file that is both texts


def require_texts(calibration: Calibration, check: Check, base: Path) -> None:
    """InputError, with the key of the recipe, for a text that is no file: before anything is read or downloaded."""
    require_check_text(check)
    try:
        named = [("calibration", source.text) for source in calibration.sources if source.text not in (SELF, SELF_TEXT)]
    except InputError as error:
        raise InputError(f"calibration.text: {error}") from error
    for key, text in (*named, *(("check", source.text) for source in check.sources)):
        require_text(f"{key}.text", text, base)


def require_text(key: str, text: str, base: Path) -> None:
    """InputError, beginning with `key`, for what is neither built in nor a data set nor a file."""
    if text.startswith("builtin:"):
        if text != PYTHON_DOCS:
            raise InputError(f"{key}: {unknown('text', text, [PYTHON_DOCS])}")
    elif text.startswith(HUB):
        try:
            DataSet.parse(text)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
    elif not (path := base / Path(text).expanduser()).exists():
        raise InputError(f"{key}: there is no file {path}; name your own text, or {PYTHON_DOCS}")


def require_check_text(check: Check) -> None:
    """InputError for a text that no model can be checked on."""
    for each in check.sources:
        if each.text in (SELF, SELF_TEXT):
            raise InputError(
                f"check.text: {each.text} is for the calibration; a model agrees with what it wrote itself"
            )
        if each.text.startswith(MIX):
            raise InputError("check.text: a mix is for the calibration; name texts")


@dataclass(frozen=True)
class Found:
    """The documents of a source.

    Attributes:
        held_out: Of each, whether it is for the check; None: the whole text serves one purpose.
        kind: What was found, in words.
    """

    found: Sequence[Document]
    held_out: Sequence[bool | None]
    kind: str


def documents_of(text: str, base: Path, split: bool) -> Found:
    """Read a source.

    Args:
        text: As a recipe names it; `require_texts` has seen it.
        base: The recipe's folder.
        split: Whether it serves the calibration and the check.

    Raises:
        InputError: It cannot be read, or has too few documents.
    """
    if text == PYTHON_DOCS:
        held_out, found = zip(*python_documents(), strict=True)
        return Found(found, held_out, "")
    read = hub_documents(text) if text.startswith(HUB) else read_documents(base / Path(text).expanduser())
    if not split:
        return Found(read.found, [None] * len(read.found), read.kind)
    read = _divisible(read)
    if len(read.found) < 2:
        raise InputError(
            f"text {text}: too few documents ({len(read.found)}) for both calibration and check; give more"
        )
    return Found(read.found, [at % CHECK_ONE_IN == 0 for at in range(len(read.found))], read.kind)


def _divisible(read: Documents) -> Documents:
    """In pieces, where each of two purposes would not get some of it otherwise."""
    whole = [each for each in read.found if isinstance(each, str)] if len(read.found) < CHECK_ONE_IN else []
    size = -(-sum(map(len, whole)) // CHECK_ONE_IN)
    found = [piece for each in whole for piece in pieces(each, max(1, size), within_lines=True)]
    return Documents(found, read.kind) if whole else read


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
