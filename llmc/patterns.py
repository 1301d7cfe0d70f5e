"""Regular expressions that somebody else wrote (a config.json, a recipe), matched against names of modules.

They mean what they mean to Python's `re`, which compressed-tensors and GPTQModel use, lookaheads included; but `re`
tries `(.+)+!` for ever. The package `regex` stops after a while. What it knows beyond `re` is refused.

A leaf module: every room may import it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

import regex

from llmc.errors import InputError

_MAX_LENGTH = 4096
_MAX_REPEATS = 10_000  # `regex` writes repeats out: ((a{1000}){1000}){1000} takes all memory
# Escapes and braces, and groups that begin with `(?`, as far as `re` has them.
_KNOWN = re.compile(
    r"\\(?:[AbBdDsSwWZafnrtvxuU\d]|N\{[\w -]+\}|[^a-zA-Z\d])"
    r"|\{\d*(?:,\d*)?\}"
    r"|\(\?(?:[aimsux]*(?:-[imsx]+)?[:)]|P[<=]|[#=!>(]|<[=!])"
)
_SPECIAL = re.compile(r"\\|\{|\([?*]|\[:\^?\w+:\]")
_FREE_SECONDS = 20e-6  # of one match; the usual one takes 2 µs


class Budget:
    """Seconds of processor time that slow matches of several patterns may take together."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.left = seconds


class Pattern:
    """One regular expression. A match that would exhaust the budget is an InputError."""

    def __init__(self, text: str, budget: Budget) -> None:
        self.text = text
        self._budget = budget
        _check(text)
        try:
            self._pattern = regex.compile(text)
        except (regex.error, ValueError, OverflowError, RecursionError, IndexError, KeyError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
            raise InputError(f"{shown(text)} is no regular expression ({reason})") from error

    def match(self, name: str) -> bool:
        """Whether it matches the beginning of `name`."""
        return self._run(self._pattern.match, name)

    def fullmatch(self, name: str) -> bool:
        """Whether it matches all of `name`."""
        return self._run(self._pattern.fullmatch, name)

    def _run(self, find: Callable[..., object], name: str) -> bool:
        start = time.thread_time()
        try:
            return find(name, timeout=max(self._budget.left, 1e-3)) is not None
        except (TimeoutError, MemoryError) as error:
            raise InputError(
                f"the regular expression {shown(self.text)} takes too long to match {shown(name)}; "
                "write it without repeats inside of repeats"
            ) from error
        finally:
            self._budget.left -= max(0.0, time.thread_time() - start - _FREE_SECONDS)


def compile_pattern(text: str, budget: Budget | None = None) -> Pattern:
    """A pattern as Python's `re` reads it; InputError when it is none, or one that would need much time or memory.

    Patterns that come together should share a `budget`; alone, it has one of its own.
    """
    return Pattern(text, budget or Budget())


def shown(text: str) -> str:
    """Text from somewhere else, for a message of one line."""
    return repr(text if len(text) <= 80 else f"{text[:77]}…")


def _check(text: str) -> None:
    if len(text) > _MAX_LENGTH:
        raise InputError(f"{shown(text)} is a regular expression of {len(text):,} characters; at most {_MAX_LENGTH:,}")
    position, repeats = 0, 1
    while found := _SPECIAL.search(text, position):
        known = _KNOWN.match(text, found.start())
        if known is None:
            near = text[found.start() : found.start() + 8]
            raise InputError(f"{shown(text)} is no regular expression (Python's re does not know {near!r})")
        if found[0] == "{":
            repeats *= math.prod(int(count[:9]) for count in re.findall("[1-9][0-9]*", known[0]))
        if repeats > _MAX_REPEATS:
            raise InputError(f"the regular expression {shown(text)} repeats too often; use *, + or smaller counts")
        position = known.end()
