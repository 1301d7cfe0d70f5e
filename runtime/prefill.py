"""The last message of a chat as the beginning of the answer: `continue_final_message`, as transformers does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmc.errors import InputError

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # the space at its end tells whether the template trims what is said


def opened(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """The messages with a mark behind the last one's text, and that text. InputError when it has none."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        return [*messages[:-1], {**messages[-1], "content": content + _TAG}], content
    blocks = list(content) if isinstance(content, (list, tuple)) else []
    for place in reversed(range(len(blocks))):
        if isinstance(blocks[place], Mapping) and isinstance(text := blocks[place].get("text"), str):
            blocks[place] = {**blocks[place], "text": text + _TAG}
            return [*messages[:-1], {**messages[-1], "content": blocks}], text
    raise InputError("the last message has no text that an answer could go on from; leave out continue_final_message")


def cut(text: str, said: str) -> str:
    """A rendered chat up to the mark: without what would end the last message."""
    place = text.rfind(_TAG.strip())
    if place < 0 or said.strip() not in text:
        raise InputError("the chat template does not show the last message as it is; it cannot be continued")
    return text[:place] if text.startswith(_TAG, place) else text[:place].rstrip()
