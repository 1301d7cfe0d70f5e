"""YAML from people: mappings, lists and words. Nothing that stands for something else (anchors, tags), nothing deep.

Read event by event: what is refused is refused before it takes time or memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from llmc.visible import unseen

Location = tuple[str | int, ...]

_MAX_DEPTH, _MAX_KEY, _MAX_WORD, _MAX_DIGITS = 32, 200, 8192, 40
_EXPONENT = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{0,20})?[eE][-+]?[0-9]{1,4}")
# The parser in C, where PyYAML was built with it: a hundred times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOT_TEXT = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\uffff\U00010000-\U0010ffff]")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_CONSTRUCTED = (*_NUMBERS, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")


class Problem(ValueError):
    """What is wrong, in which line (the first is 1), and below which keys, where that is known."""

    def __init__(self, message: str, line: int, location: Location = ()) -> None:
        super().__init__(message)
        self.line, self.location = line, location


def read(text: str, typed: bool = True, prose: bool = False) -> tuple[Any, dict[Location, int]]:
    """The value, and the line of every key and list entry in it; Problem for everything else.

    Args:
        typed: words that YAML takes for numbers, booleans or null become such; otherwise every word is a str.
        prose: values may have several lines, and tabs.
    """
    if found := _NOT_TEXT.search(text):
        raise Problem(f"has the character {found[0]!a}, which is no text", text.count("\n", 0, found.start()) + 1)
    loader = _LOADER(text)
    try:
        reader = _Reader(loader, typed, prose)
        return reader.document(), reader.lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        last = text.rstrip("\n").count("\n") + 1  # where something is missing, the parser counts the end as a line
        raise Problem(f"not valid YAML: {reason}", min(mark.line + 1, last) if mark else 1) from error
    finally:
        loader.dispose()


class _Reader:
    def __init__(self, loader: Any, typed: bool, prose: bool) -> None:
        self.loader, self.typed, self.prose = loader, typed, prose
        self.lines: dict[Location, int] = {(): 1}
        self.events: Iterator[yaml.Event] = iter(loader.get_event, None)

    def document(self) -> Any:
        value, documents = None, 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Problem("a second document begins here; write one", _line(event))
                value = self._value(next(self.events), ())
            elif isinstance(event, yaml.StreamEndEvent):
                break
        return value

    def _value(self, event: yaml.Event, location: Location) -> Any:
        self._refuse(event, location)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(location)
        if isinstance(event, yaml.SequenceStartEvent):
            entries: list[Any] = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                here = (*location, len(entries))
                self.lines[here] = _line(event)
                entries.append(self._value(event, here))
            return entries
        return self._word(event, location)

    def _mapping(self, location: Location) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            self._refuse(event, location)
            if not isinstance(event, yaml.ScalarEvent):
                raise Problem("a key is one word", _line(event), location)
            key = event.value
            if len(key) > _MAX_KEY:
                raise Problem(f"a key of {len(key):,} characters", _line(event), location)
            self._refuse_unseen(key, _line(event), location)
            here = (*location, key)
            if key in entries:
                raise Problem("this key is there twice; remove one", _line(event), here)
            self.lines[here] = _line(event)
            entries[key] = self._value(next(self.events), here)
        return entries

    def _word(self, event: Any, location: Location) -> Any:
        text = event.value
        if not self.typed:
            return text
        if len(text) > _MAX_WORD:
            raise Problem(f"a word of {len(text):,} characters; at most {_MAX_WORD:,}", _line(event), location)
        shown = text.replace("\n", " ").replace("\t", " ") if self.prose else text
        self._refuse_unseen(shown, _line(event), location)
        if event.implicit[0] and _EXPONENT.fullmatch(text):  # text to YAML 1.1, which wants a dot and a sign
            return float(text)
        tag = self.loader.resolve(yaml.ScalarNode, text, event.implicit)
        if tag not in _CONSTRUCTED:  # text, and dates, which nobody here asks for
            return text
        if tag in _NUMBERS and len(text) > _MAX_DIGITS:
            raise Problem(f"a number of {len(text):,} digits; at most {_MAX_DIGITS}", _line(event), location)
        node = yaml.ScalarNode(tag, text, event.start_mark, event.end_mark)
        try:
            return self.loader.construct_object(node)
        except (ValueError, OverflowError) as error:
            raise Problem(f"{text!r} is no number", _line(event), location) from error

    def _refuse(self, event: Any, location: Location) -> None:
        """What is not the plain beginning of a value."""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            message = "anchors and aliases are not supported; write the value out"
        elif getattr(event, "tag", None) is not None:
            message = "tags, which begin with !, are not supported; leave it out"
        elif len(location) > _MAX_DEPTH:
            message, location = f"nested more than {_MAX_DEPTH} deep", location[:1]
        else:
            return
        raise Problem(message, _line(event), location)

    def _refuse_unseen(self, text: str, line: int, location: Location) -> None:
        """Characters that were written as escapes: in names, paths and patterns they are never meant."""
        if self.typed and (character := unseen(text)):
            raise Problem(f"has the character {character!a}; write it without", line, location)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
