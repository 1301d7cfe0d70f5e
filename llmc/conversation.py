"""`llmc run` without a prompt: question and answer, until the user has had enough."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.console import Console

from llmc import terminal
from llmc.errors import InputError, LlmcError
from llmc.runtime import SamplingParams, generation_config
from llmc.runtime.chat import Message
from llmc.runtime.model import Model
from llmc.runtime.stream import Stream

_HELP = "/clear forgets the conversation, /help shows this, /quit or Ctrl-D ends; Ctrl-C stops an answer."


def parameters(model: Model, **asked: Any) -> SamplingParams:
    """What the user asks for, and for what is None the model's own settings; says which of those there are."""
    try:
        own = model.defaults
    except InputError as error:
        terminal.fail(f"{error}; it is ignored")
        own = SamplingParams()
    given = {name for name, value in asked.items() if value is not None}
    found = own.changed(asked)
    if said := generation_config.said(found, given):
        terminal.fail(f"{said} as the model's generation_config.json says; --temperature 0 is greedy")
    return found


def with_images(text: str, images: Sequence[str]) -> Message:
    """A question about images."""
    parts: list[dict[str, str]] = [{"type": "image", "image": path} for path in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if images else text}


def converse(
    model: Model,
    parameters: SamplingParams,
    system: str | None,
    chat: bool,
    statistics: bool,
    images: Sequence[str] = (),
) -> int:
    """Reads lines from standard input. With a chat template they are a conversation, otherwise each is a text to
    continue. What went wrong with one of them is told, and the next one can be given. Returns the exit code: where
    nobody looks on, as at the end of a pipe, that of the first error. The first line is about the images.
    """
    console = terminal.console(stderr=True, highlight=False)
    kind = "a conversation" if chat else "no chat template: every line is a text to continue"
    interactive = sys.stdin.isatty()
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    if chat:
        model.chat_prompt([*first, {"role": "user", "content": "?"}])  # what is wrong with the template is told at once
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # editing and history for input(); not on Windows

        console.print(f"{model.artifact.path}: {kind}. {_HELP}", style="dim")
    session, code, shown = model.session(), 0, list(images)
    messages = list(first)
    while (line := _read(interactive, console)) is not None:
        command = line.strip()
        if command in ("/quit", "/exit"):
            break
        if command == "/clear":
            messages, shown = list(first), list(images)
        elif command == "/help":
            console.print(_HELP)
        elif command:
            asked: list[Message] = [*messages, with_images(line, shown)]
            try:
                stream = session.stream(asked, parameters) if chat else session.stream(line, parameters, images=shown)
                said = answer(stream, console if statistics else None)
                if not interactive and stream.generation.finish_reason == "cancelled":
                    raise KeyboardInterrupt
            except LlmcError as error:
                room = "; /clear forgets what was said" if chat and len(messages) > len(first) else ""
                console.print(f"llmc: {error}{room}", markup=False, soft_wrap=True)
                code = code or (0 if interactive else error.exit_code)
            except KeyboardInterrupt:  # before it began
                if not interactive:
                    raise
                console.print()
            else:
                messages, shown = [*asked, {"role": "assistant", "content": said}] if chat else messages, []
    return code


def answer(stream: Stream, console: Console | None, write: Callable[[str], None] | None = None) -> str:
    """Prints an answer as it comes, and on the console what it took; Ctrl-C ends it. Returns its text."""
    write = write or terminal.say
    start = time.perf_counter()
    try:
        for piece in stream:
            write(piece)
    except KeyboardInterrupt:
        stream.cancel()
    write("\n")
    if console:
        found, seconds = stream.generation, time.perf_counter() - start
        drafts = f", {found.accepted} of {found.drafted} drafts accepted" if found.drafted else ""
        cached = f" ({found.cached_tokens} of them known)" if found.cached_tokens else ""
        tokens = len(found.token_ids)
        console.print(
            f"{found.prompt_tokens} prompt tokens{cached}, {tokens} new in {seconds:.2f} s "
            f"({tokens / seconds:.0f} a second){drafts}; ended by {found.finish_reason}",
            style="dim",
        )
    return stream.generation.text


def _read(interactive: bool, console: Console) -> str | None:
    """The next line; None at the end. Ctrl-C takes back what was typed."""
    if not interactive:
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    while True:
        try:
            return input("> ")
        except EOFError:
            typer.echo()
            return None
        except KeyboardInterrupt:
            console.print("\nCtrl-D ends", style="dim")
