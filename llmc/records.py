"""Records of JSON and Parquet as documents, by the names that data sets use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from llmc.errors import InputError

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

# What a message holds beside text, and the columns that it lies in.
_NO_TEXT = ("image", "image_url", "video", "audio", "input_audio", "input_image")
_PICTURES = ("image", "images", "video", "videos", "audio", "audios")

Chat: TypeAlias = list[dict[str, Any]]
Document: TypeAlias = str | Chat
# What may be read of a record.
COLUMNS = (*_TEXTS, *_CHATS, *(key for pair in _PAIRS for side in pair for key in side), *_PICTURES, "system")


def rows_of(value: Any) -> list[Any]:
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


def document(where: str, record: Any) -> tuple[str, Document]:
    """The keys it is read by, and the document."""
    keys, document = _found(where, record)
    if not isinstance(document, str):
        _refuse_pictures(where, record, document)
    texts = [document] if isinstance(document, str) else [message.get("content") for message in document]
    for text in texts:
        try:
            _ = text.encode() if isinstance(text, str) else b""
        except UnicodeEncodeError as error:
            raise InputError(f"text {where}: half a character at place {error.start} of its text; repair it") from error
    return keys, document


def _refuse_pictures(where: str, record: Mapping[str, Any], chat: Chat) -> None:
    parts = [part for message in chat if isinstance(message.get("content"), list) for part in message["content"]]
    kinds = [str(part.get("type")) for part in parts if isinstance(part, Mapping)]
    found = [*(kind for kind in kinds if kind in _NO_TEXT), *(name for name in _PICTURES if record.get(name))]
    if found:
        raise InputError(
            f"text {where}: the chat holds more than text ({found[0]}), and llmc calibrates on text alone; leave such "
            "chats out"
        )


def _found(where: str, record: Any) -> tuple[str, Document]:
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
