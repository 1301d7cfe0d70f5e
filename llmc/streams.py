"""Standard input, output and error as they come: closed, ASCII, or with bytes that are no text."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

_READABLE = {"→": "->", "·": "-", "–": "-", "±": "+-", "×": "x", "…": "...", "“": '"', "”": '"', "’": "'"}


def prepare() -> None:
    """Makes them fit for all that follows; called once, before a file is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get its number, and what libraries print
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    codecs.register_error("llmc.readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_unicode(stream.encoding):
            stream.reconfigure(errors="llmc.readable")
    if isinstance(sys.stdin, io.TextIOWrapper):
        encoding = "utf-8" if codecs.lookup(sys.stdin.encoding).name == "ascii" else None  # which begins alike
        errors = "surrogateescape" if sys.stdin.errors == "strict" else sys.stdin.errors  # told when it is used
        sys.stdin.reconfigure(encoding=encoding, errors=errors)


def write(text: str) -> None:
    """To standard output, at once. Not by typer.echo, which writes UTF-8 where ASCII is asked for."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(line: str) -> None:
    """To standard error, if that takes it: what is wrong with a command counts for more."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def give_up(line: str) -> None:
    """Says why, and lets nothing of what could not be written be tried again at the end."""
    complain(line)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)


def shows(text: str) -> bool:
    """Whether standard output can show a text as it is."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def argument(text: str | None) -> str | None:
    """An argument of the command line as UTF-8, whatever the locale took its bytes for."""
    return None if text is None else os.fsencode(text).decode("utf-8", "surrogateescape")


def _is_unicode(encoding: str | None) -> bool:
    return encoding is None or codecs.lookup(encoding).name.startswith("utf")


def _readable(error: UnicodeError) -> tuple[str, int]:
    """For what an encoding has no character for."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    shown = (_READABLE.get(each) or each.encode("ascii", "backslashreplace").decode() for each in part)
    return "".join(shown), error.end
