"""Documents of a file or a folder: of plain text, pieces of it; of JSON and Parquet, records, chats among them.

JSON lines, JSON lists and Parquet are what other quantizers calibrate on. Their records are read by the names that data
sets use; one that has none of them is refused, since braces, keys and escapes are no text that a model was made for.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from llmc.compressed import name_inside, read_unpacked
from llmc.errors import InputError
from llmc.parquet_rows import ParquetRows
from llmc.records import COLUMNS, Document, document, rows_of

_MOST_BYTES = 1 << 34
# Of a data set: what names of files end with that hold records or text.
RECORD_FILES = r"\.(?:jsonl?|ndjson|parquet|pq|txt)(?:\.(?:gz|bz2|xz|zst))?$"
_PIECE_CHARACTERS = 8000
_JSON, _JSON_LINES, _PARQUET = (".json",), (".jsonl", ".ndjson"), (".parquet", ".pq")
_ADVICE = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z"), "unpack it first"),
    **dict.fromkeys(
        (".arrow", ".csv", ".tsv", ".xlsx"),
        "turn it into JSON lines, with pandas' `to_json(…, orient='records', lines=True)` or datasets' `to_json`",
    ),
}


@dataclass(frozen=True)
class Documents:
    """A document is text, or the messages of a chat. `kind` says what they are, for people."""

    found: Sequence[Document]
    kind: str


def read_documents(path: Path) -> Documents:
    """InputError, with file and line, for what is no text or has none that llmc knows how to read. A folder has the
    documents of all its files.
    """
    return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> Documents:
    inside = name_inside(path)
    suffix = inside.suffix.lower()
    if advice := _ADVICE.get(suffix):
        raise InputError(f"text {path}: {suffix} files are not read; {advice}")
    if suffix in _PARQUET:
        rows = _Rows(path)
        return Documents(rows, f"records read by {rows.key()}" if rows else "none")
    try:
        text = read_unpacked(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"text {path}: cannot be read as UTF-8 text ({error})") from error
    if suffix not in _JSON + _JSON_LINES:
        found = pieces(text.replace("\r\n", "\n").replace("\r", "\n"), _PIECE_CHARACTERS)
        return Documents(found if not found or found[-1].strip() else found[:-1], "pieces of text")
    records = [document(where, record) for where, record in _records(path, suffix in _JSON, text)]
    keys = sorted({key for key, _ in records})
    return Documents([document for _, document in records], f"records read by {' and '.join(keys)}" if keys else "none")


def _folder(path: Path) -> Documents:
    """Of all files that are not hidden, in the order of their names; what is no text is left out, and counted."""
    found: list[Documents] = []
    left_out = 0
    for file in sorted(path.rglob("*")):
        names = file.relative_to(path).parts
        if any(name.startswith(".") for name in names) or not file.is_file():
            continue
        try:
            found.append(_file(file))
        except InputError:
            if name_inside(file).suffix.lower() in _JSON_LINES + _PARQUET:  # which hold records, or are broken
                raise
            left_out += 1
    if not found:
        raise InputError(f"text {path}: holds no file of text")
    rest = f", {left_out:,} others left out" if left_out else ""
    kinds = " and ".join(dict.fromkeys(each.kind for each in found))
    return Documents(Joined([each.found for each in found]), f"{len(found):,} files of text{rest}: {kinds}")


class _Lazy(Sequence[Document]):
    """Documents that are made when they are asked for."""

    @abstractmethod
    def _one(self, at: int) -> Document: ...

    @overload
    def __getitem__(self, at: int) -> Document: ...
    @overload
    def __getitem__(self, at: slice) -> list[Document]: ...
    def __getitem__(self, at: int | slice) -> Document | list[Document]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        return self._one(at)


class Joined(_Lazy):
    """Documents of several files."""

    def __init__(self, parts: Sequence[Sequence[Document]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _one(self, at: int) -> Document:
        part = bisect_right(self._ends, at)
        if at < 0 or part == len(self._ends):
            raise IndexError(at)
        return self._parts[part][at - self._ends[part] + len(self._parts[part])]


class _Rows(_Lazy):
    """Documents of a Parquet file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows = path, ParquetRows(path, COLUMNS)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self) -> str:
        """The keys that the first one is read by."""
        return self._read(0)[0]

    def _read(self, at: int) -> tuple[str, Document]:
        return document(f"{self._path}: row {at + 1}", self._rows[at])

    def _one(self, at: int) -> Document:
        return self._read(at)[1]


def pieces(text: str, characters: int, within_lines: bool = False) -> list[str]:
    """Cuts text at line ends into documents of about so many characters; within lines at spaces, if there are any."""
    found, start = [], 0
    while start < len(text):
        end = text.find("\n", start + characters - 1) + 1 or len(text)
        if within_lines and end - start > 2 * characters:
            space = text.find(" ", start + characters, start + 2 * characters)
            end = space if space > 0 else start + characters
        found.append(text[start:end])
        start = end
    return found


def _records(path: Path, one: bool, text: str) -> Iterator[tuple[str, Any]]:
    """(where, record). one: the file is called a single JSON value."""
    if one:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            if not str(error).startswith("Extra data"):
                raise InputError(f"text {path}: not valid JSON ({error})") from error
            # JSON lines under another name, as is usual.
        else:
            records = value if isinstance(value, list) else rows_of(value)
            yield from _numbered(path, records)
            return
    elif (listed := _list(text)) is not None:
        yield from _numbered(path, listed)
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() cuts at characters that JSON strings may hold
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"text {path}:{number}: not valid JSON ({error}); one record a line") from error


def _numbered(path: Path, records: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{path}: record {number}", record) for number, record in enumerate(records, 1))


def _list(text: str) -> list[Any] | None:
    """A JSON list that is called JSON lines."""
    if not text[:100].lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None
