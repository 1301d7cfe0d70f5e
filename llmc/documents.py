"""Documents of a text file: of plain text, pieces of it; of JSON, its records, chats among them.

JSON lines and JSON lists are what other quantizers calibrate on. Their records are read by the names that data sets
use; one that has none of them is refused, since braces, keys and escapes are no text that a model was made for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llmc.errors import InputError
from llmc.files import read_regular

_MOST_BYTES = 1 << 34
_PIECE_CHARACTERS = 8000
_JSON, _JSON_LINES = (".json",), (".jsonl", ".ndjson")
_ADVICE = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "unpack it first"),
    **dict.fromkeys(
        (".parquet", ".arrow", ".csv", ".tsv", ".xlsx"),
        "turn it into JSON lines, with pandas' `to_json(…, orient='records', lines=True)` or datasets' `to_json`",
    ),
}
_TEXTS = ("text", "content")
_CHATS = ("messages", "conversations", "conversation")
# What is asked (with what belongs to it) and what is answered.
_PAIRS = (
    (("prompt",), ("completion", "response")),
    (("instruction", "input"), ("output", "response")),
    (("question",), ("answer", "response")),
)
_READ = "`text`, `messages`, `conversations`, `prompt` and `completion`, `instruction` and `output`"
# ShareGPT's names.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}

Chat: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class Documents:
    """A document is text, or the messages of a chat. `kind` says what they are, for people."""

    found: Sequence[str | Chat]
    kind: str


def read_documents(path: Path) -> Documents:
    """InputError, with file and line, for what is no text or has none that llmc knows how to read."""
    if advice := _ADVICE.get(path.suffix.lower()):
        raise InputError(f"text {path}: {path.suffix} files are not read; {advice}")
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"text {path}: cannot be read as UTF-8 text ({error})") from error
    if path.suffix.lower() not in _JSON + _JSON_LINES:
        found = pieces(text.replace("\r\n", "\n").replace("\r", "\n"), _PIECE_CHARACTERS)
        return Documents(found if not found or found[-1].strip() else found[:-1], "pieces of text")
    records = [_document(where, record) for where, record in _records(path, text)]
    keys = sorted({key for key, _ in records})
    return Documents([document for _, document in records], f"records read by {' and '.join(keys)}" if keys else "none")


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


def _records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """(where, record)"""
    if path.suffix.lower() in _JSON:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            if not str(error).startswith("Extra data"):
                raise InputError(f"text {path}: not valid JSON ({error})") from error
            # JSON lines under another name, as is usual.
        else:
            records = value if isinstance(value, list) else _rows(value)
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


def _rows(value: Any) -> list[Any]:
    """The records of a table by columns: {"text": ["…", "…"], "id": [1, 2]}; what is none is one record."""
    if not isinstance(value, dict):
        return [value]
    columns = [value.get(key) for key in _TEXTS]
    found = [each for each in columns if isinstance(each, list) and all(isinstance(cell, str) for cell in each)]
    columns = [value.get(key) for key in _CHATS]
    found += [each for each in columns if isinstance(each, list) and all(isinstance(cell, list) for cell in each)]
    pairs = [(value.get(asked[0]), value.get(key)) for asked, answered in _PAIRS for key in answered]
    found += [a for a, b in pairs if isinstance(a, list) and isinstance(b, list) and _are_cells(a) and _are_cells(b)]
    if not found or not (count := len(found[0])):
        return [value]
    whole = {key: column for key, column in value.items() if isinstance(column, list) and len(column) == count}
    return [{key: column[row] for key, column in whole.items()} for row in range(count)]


def _are_cells(column: list[Any]) -> bool:
    """Of texts or chats, and not the messages of one chat."""
    return all(isinstance(cell, (str, list)) for cell in column)


def _document(where: str, record: Any) -> tuple[str, str | Chat]:
    """The keys it is read by, and the document."""
    keys, document = _found(where, record)
    texts = [document] if isinstance(document, str) else [message.get("content") for message in document]
    for text in texts:
        try:
            _ = text.encode() if isinstance(text, str) else b""
        except UnicodeEncodeError as error:
            raise InputError(f"text {where}: half a character at place {error.start} of its text; repair it") from error
    return keys, document


def _found(where: str, record: Any) -> tuple[str, str | Chat]:
    if isinstance(record, str):
        return "place", record
    if not isinstance(record, Mapping):
        raise InputError(f"text {where}: is {_kind(record)}; a record is text or an object with {_READ}")
    for key in _TEXTS:
        if isinstance(record.get(key), str):
            return f"`{key}`", record[key]
    for key in _CHATS:
        if isinstance(record.get(key), list):
            return f"`{key}`", _with_system(record, [_message(where, key, each) for each in record[key]])
    for asked, answered in _PAIRS:
        answer = next((key for key in answered if record.get(key)), None)
        if answer and record.get(asked[0]):
            return f"`{asked[0]}` and `{answer}`", _with_system(record, _pair(where, record, asked, answer))
    for keys, wanted in ((_TEXTS, "text"), (_CHATS, "a list of messages")):
        if wrong := next((key for key in keys if key in record), None):
            raise InputError(f"text {where}: `{wrong}` is {_kind(record[wrong])}; it has to be {wanted}")
    raise InputError(f"text {where}: has {_named(record)}; give it one of {_READ}")


def _pair(where: str, record: Mapping[str, Any], asked: tuple[str, ...], answer: str) -> Chat:
    if isinstance(record[asked[0]], list) and isinstance(record[answer], list):  # messages on both sides
        return [_message(where, key, each) for key in (asked[0], answer) for each in record[key]]
    parts = [record[key] for key in asked if record.get(key)]
    if not all(isinstance(part, str) for part in (*parts, record[answer])):
        raise InputError(f"text {where}: {asked[0]} and {answer} must both be text, or both be lists of messages")
    return [{"role": "user", "content": "\n".join(parts)}, {"role": "assistant", "content": record[answer]}]


def _message(where: str, key: str, message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping) and isinstance(message.get("role"), str):
        return dict(message)
    if isinstance(message, Mapping) and isinstance(message.get("from"), str) and "value" in message:
        return {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
    raise InputError(f"text {where}: {key} must hold messages with role and content, or from and value")


def _with_system(record: Mapping[str, Any], chat: Chat) -> Chat:
    """The chat behind its system prompt, for which some data sets have a key of its own."""
    told = record.get("system")
    if not isinstance(told, str) or not told.strip() or not chat or chat[0]["role"] == "system":
        return chat
    return [{"role": "system", "content": told}, *chat]


def _kind(value: Any) -> str:
    """For people."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    return kinds[type(value)]


def _named(record: Mapping[str, Any]) -> str:
    names = [repr(key)[:40] for key in list(record)[:8]]
    return f"the keys {', '.join(names)}" if names else "no keys"
