"""What strangers wrote reaches a terminal as text."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn
from typer.testing import CliRunner

from llmc import terminal
from llmc.cli import app
from llmc.progress import Display
from llmc.tables import table
from llmc.visible import unseen, visible, visible_json, visible_line

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"  # puts `rm -rf ~` into the clipboard
STRANGE = ["\0", "\a", "\b", "\r", "\x1b", "\x7f", "\x9b", "\u202e", "\u2067", "\u2028", "\udc9b"]


@pytest.mark.parametrize("character", STRANGE, ids=ascii)
def test_characters_are_seen_and_json_means_the_same(character: str) -> None:
    text = f"é {character}\n\t😀"
    assert visible(text) == f"é {ascii(character)[1:-1]}\n\t😀"
    assert visible_line(text) == f"é {ascii(character)[1:-1]}\\n\\t😀"
    assert unseen(text) == character
    shown = visible_json(json.dumps({text: [text]}, indent=2, ensure_ascii=False))
    assert json.loads(shown) == {text: [text]}
    assert character not in shown


def test_text_stays_as_it_is() -> None:
    assert visible("schön\n\t“日本語” 👩‍👩‍👧 \\x1b") == "schön\n\t“日本語” 👩‍👩‍👧 \\x1b"
    assert unseen("schön “日本語” 👩‍👩‍👧") is None


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, print_something) -> str:
    """What `print_something(console)` writes to a terminal of 200 columns."""
    out = io.StringIO()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    print_something(terminal.console())
    return out.getvalue()


def test_tables_are_wide_enough_for_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(f"title {CLIPBOARD}[/]", f"head{CLIPBOARD}", "[link=http://evil.example]b[/link]")
    made.add_row(f"cell {CLIPBOARD}", ":smile: [bold]x[/bold]")
    made.add_row("[/]", "\x9b31m")
    text = on_a_terminal(monkeypatch, lambda console: console.print(made))
    for part in (r"title \x1b]52;c;cm0gLXJmIH4=\x07[/]", r"cell \x1b]52;c;cm0gLXJmIH4=\x07", ":smile: [bold]x[/bold]"):
        assert part in text
    assert r"\x9b31m" in text and "[link=http://evil.example]b[/link]" in text
    assert "\x1b]" not in text and "\x9b" not in text and "\a" not in text


def test_progress_shows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(console) -> None:
        display = Display(console)
        with display.stage(f"target {CLIPBOARD}[/]"):
            display.update(f"reading {CLIPBOARD}[/]", 0.5)
        with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
            progress.add_task(f"other {CLIPBOARD}[/]", total=1)

    text = on_a_terminal(monkeypatch, work)
    assert r"target \x1b]52;c;cm0gLXJmIH4=\x07[/]" in text
    assert r"reading \x1b]52;c;cm0gLXJmIH4=\x07[/]" in text
    assert r"other \x1b]52" in text
    assert "\x1b]" not in text and "\a" not in text


def test_lines_of_a_build_and_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(console) -> None:
        Display(console, tmp_path / "log").line(f"target {CLIPBOARD}[/]\n2026-01-01 00:00:00 all is well")

    text = on_a_terminal(monkeypatch, work)
    assert r"target \x1b]52;c;cm0gLXJmIH4=\x07[/]\n2026-01-01 00:00:00 all is well" in text and "\x1b]" not in text
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(r"target \x1b]52;c;cm0gLXJmIH4=\x07[/]\n2026-01-01 00:00:00 all is well")


def test_messages_are_one_line_that_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.fail(f"tensor {CLIPBOARD}\nllmc: all is well \u202e{'x' * 100_000}; download it again")
    message = capsys.readouterr().err
    assert message.startswith(r"llmc: tensor \x1b]52;c;cm0gLXJmIH4=\x07 llmc: all is well \u202exxx")
    assert message.endswith("xxx; download it again\n") and len(message) < 5000 and message.count("\n") == 1


def test_a_model_does_not_reach_the_terminal_and_does_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    said = on_a_terminal(monkeypatch, lambda console: terminal.say(f"\x1b[31mred\x1b[0m\r\n\t{CLIPBOARD}"))
    assert said == "\\x1b[31mred\\x1b[0m\\r\n\t\\x1b]52;c;cm0gLXJmIH4=\\x07"
    monkeypatch.setattr(sys, "stdout", piped := io.StringIO())
    terminal.say("\x1b[31mred\x1b[0m\r\n\t\x1b]52")
    assert piped.getvalue() == "\x1b[31mred\x1b[0m\r\n\t\x1b]52"


def test_an_artifact_of_a_stranger(recipe, tmp_path: Path) -> None:
    """On a real terminal: the table of `inspect`, and the error of a name that is none."""
    made = CliRunner().invoke(app, ["build", str(recipe()), "--output", str(tmp_path / "artifact")])
    assert made.exit_code == 0, made.stderr
    path = tmp_path / "artifact" / "llmc.json"
    manifest = json.loads(path.read_text())
    manifest["source"]["id"] = f"[link=http://evil.example]org/model[/link]{CLIPBOARD}[/]"
    path.write_text(json.dumps(manifest))
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "llmc.cli", "inspect", str(tmp_path / "artifact")]
    environment = os.environ | {"COLUMNS": "200", "TERM": "xterm-256color"}
    looked = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert looked.wait() == 0, shown
    assert rb"[link=http://evil.example]org/model[/link]\x1b]52;c;cm0gLXJmIH4=\x07[/]" in shown
    assert b"\x1b]" not in shown


def test_json_has_no_numbers_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"kl": float("nan"), "ppl": [float("inf"), 1.5]})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"kl": None, "ppl": [None, 1.5]}
