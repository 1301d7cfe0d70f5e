"""Where the command line prints: nothing of what strangers wrote does anything to a terminal.

Tables and messages show control characters as `\\x1b`, on a terminal and in a pipe, and know no markup. What a model
says is shown so on a terminal alone: in a pipe it stays as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from llmc import streams
from llmc.visible import visible, visible_json, visible_line

_MAX_MESSAGE = 4000  # characters; tensors have been seen whose names are longer


class _Console(Console):
    """Words are made visible before they are measured, for tables; and what did not come this way when it is printed,
    such as descriptions of progress.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def console(stderr: bool = False, highlight: bool = True) -> Console:
    """Of rich, for tables, progress and lines."""
    return _Console(stderr=stderr, highlight=highlight, markup=False, emoji=False)


def print_table(table: Table) -> None:
    """On standard output, its title in a line of its own, which is not cut to the table's width."""
    title, table.title = table.title, None
    out = console()
    if title:
        out.print(title, style="italic", soft_wrap=True, highlight=False)
    out.print(table)


def fail(message: str) -> None:
    """One line on standard error."""
    line = visible_line(" ".join(message.split()))
    if len(line) > _MAX_MESSAGE:
        line = f"{line[: _MAX_MESSAGE // 2]} … {line[-_MAX_MESSAGE // 2 :]}"
    streams.complain(f"llmc: {line}")


def say(text: str) -> None:
    """A piece of what a model says, on standard output."""
    streams.write(visible(text) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    value = json.loads(json.dumps(value), parse_constant=lambda _: None)  # JSON knows neither NaN nor infinity
    text = visible_json(json.dumps(value, indent=2, ensure_ascii=False))
    streams.write((text if streams.shows(text) else json.dumps(value, indent=2)) + "\n")
