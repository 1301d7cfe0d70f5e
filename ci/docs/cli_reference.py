"""The page "Command line": every command, its arguments and options, from the command line's own definitions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main

from llmc.cli import app

INTRODUCTION = """# Command line

This page is generated from the commands themselves; `llmc COMMAND --help` prints the same.
"""


def page() -> str:
    """Return the page, as Markdown."""
    command = typer.main.get_command(app)
    return "\n".join([INTRODUCTION, *_command(command, "llmc")])


def _command(command: Any, path: str) -> Iterator[str]:
    """Yield the section of a command, then those of the commands below it."""
    context = command.make_context(path, [], resilient_parsing=True)
    yield f"## {path}\n"
    yield f"    {command.get_usage(context).removeprefix('Usage: ')}\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    yield "| argument or option | meaning |\n|---|---|"
    for name, meaning in filter(None, records):
        yield f"| `{_cell(name)}` | {_cell(meaning)} |"
    yield ""
    for name, below in getattr(command, "commands", {}).items():
        yield from _command(below, f"{path} {name}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
