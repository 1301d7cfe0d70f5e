"""`llmc run` without a prompt, and `llmc bench`."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.listed_files import list_files
from typer.testing import CliRunner

from llmc.cli import app
from llmc.runtime import load

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"


@pytest.fixture
def artifact(recipe, tmp_path: Path) -> Path:
    made = CliRunner().invoke(app, ["build", str(recipe()), "--output", str(tmp_path / "artifact")])
    assert made.exit_code == 0, made.stderr
    return tmp_path / "artifact"


@pytest.fixture
def chatty(artifact: Path) -> Path:
    (artifact / "chat_template.jinja").write_text(TEMPLATE)
    list_files(artifact, "chat_template.jinja")
    return artifact


def talk(artifact: Path, lines: str, *options: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["run", str(artifact), *options], input=lines)
    assert done.exit_code == code, done.stderr
    return done.stdout, done.stderr


def test_a_conversation_remembers_and_forgets(chatty: Path) -> None:
    out, error = talk(
        chatty, "hello\n\nand you\n/clear\nhello\n/quit\nnever read\n", "--max-new-tokens", "6", "--statistics"
    )
    with load(chatty) as model:
        first = model.chat([{"role": "user", "content": "hello"}], max_new_tokens=6).text
        asked = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "and you"},
        ]
        second = model.chat(asked, max_new_tokens=6).text
    assert out == f"{first}\n{second}\n{first}\n"
    assert error.count(" new in ") == 3 and " of them known)" in error


def test_a_template_of_ones_own(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}?")
    with load(artifact) as model:
        expected = model.generate("hello?", max_new_tokens=5).text + "\n"
    options = ("--chat", "--prompt", "hello", "--max-new-tokens", "5", "--chat-template", str(tmp_path / "mine.jinja"))
    assert talk(artifact, "", *options)[0] == expected


def test_system_message_and_chat_with_a_prompt(chatty: Path) -> None:
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hello"}]
    with load(chatty) as model:
        expected = model.chat(messages, max_new_tokens=5).text + "\n"
    options = ("--system", "Be brief", "--max-new-tokens", "5")
    assert talk(chatty, "hello\n", *options)[0] == expected
    assert talk(chatty, "", "--chat", "--prompt", "hello", *options)[0] == expected
    answer = json.loads(talk(chatty, "", "--chat", "--prompt", "hello", "--json", *options)[0])
    assert answer["text"] + "\n" == expected


def test_without_a_template_every_line_is_continued(artifact: Path) -> None:
    out, _ = talk(artifact, "hello\nhello\n", "--max-new-tokens", "4")
    with load(artifact) as model:
        assert out == 2 * (model.generate("hello", max_new_tokens=4).text + "\n")
    for options in (["--prompt", "hi"], []):
        refused = CliRunner().invoke(app, ["run", str(artifact), "--chat", *options], input="hi\n")
        assert refused.exit_code == 2 and "no chat template" in refused.stderr
    refused = CliRunner().invoke(app, ["run", str(artifact), "--prompt", "hi", "--system", "Be brief"])
    assert refused.exit_code == 2 and "--system is for a chat" in refused.stderr


def test_a_text_that_does_not_fit_is_told_and_the_next_one_answered(artifact: Path) -> None:
    out, error = talk(artifact, "x" * 2000 + "\nhello\n", "--max-new-tokens", "4", code=2)
    assert "do not fit the context" in error and out.count("\n") == 1 and "/clear" not in error
    spoiled = subprocess.run(
        [sys.executable, "-m", "llmc.cli", "run", str(artifact), "--max-new-tokens", "4"],
        input=b"caf\xe9\nhello\n",
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:surrogateescape"},
    )
    assert (
        spoiled.returncode == 2 and b"no valid text at character 3" in spoiled.stderr and spoiled.stdout.decode() == out
    )


def test_the_models_own_settings_are_followed_and_said(artifact: Path) -> None:
    (artifact / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.9, "top_k": 7}))
    list_files(artifact, "generation_config.json")
    options = ("--prompt", "hello", "--max-new-tokens", "8")
    with load(artifact) as model:
        sampled = model.generate("hello", max_new_tokens=8, temperature=0.9, top_k=7).text
        warmer = model.generate("hello", max_new_tokens=8, temperature=0.9, top_k=0, seed=3).text
        greedy = model.generate("hello", max_new_tokens=8, temperature=0).text
    out, error = talk(artifact, "", *options)
    assert out == f"hello{sampled}\n" != f"hello{greedy}\n"
    assert (
        error
        == "llmc: temperature 0.9, top_k 7 as the model's generation_config.json says; --temperature 0 is greedy\n"
    )
    assert talk(artifact, "hello\n", "--max-new-tokens", "8")[0] == f"{sampled}\n"
    assert json.loads(talk(artifact, "", *options, "--json")[0])["text"] == sampled
    assert talk(artifact, "", *options, "--temperature", "0") == (f"hello{greedy}\n", "")
    out, error = talk(artifact, "", *options, "--top-k", "0", "--seed", "3")
    assert out == f"hello{warmer}\n" and error.startswith("llmc: temperature 0.9 as the model's")
    (artifact / "generation_config.json").write_text('{"do_sample": 3}')
    list_files(artifact, "generation_config.json")
    out, error = talk(artifact, "", *options)
    assert out == f"hello{greedy}\n" and "do_sample is 3" in error and error.endswith("; it is ignored\n")


def test_ctrl_c_stops_the_answer_and_not_the_program(artifact: Path) -> None:
    manifest = json.loads((artifact / "llmc.json").read_text())
    manifest["model"] |= {"eos_token_ids": [], "max_position_embeddings": 100_000}  # an answer that would take long
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llmc.cli", "run", str(artifact), "--max-new-tokens", "90000", "--threads", "1"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_own_terminal
    )
    os.close(theirs)
    seen = b""

    def read_until(condition: Callable[[bytes], bool], quiet: bool = False) -> None:
        """quiet: and nothing more comes, since a model may say what looks like a prompt."""
        nonlocal seen
        deadline = time.monotonic() + 60
        while not (condition(seen) and not (quiet and select.select([ours], [], [], 1)[0])):
            ready, _, _ = select.select([ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, seen
            seen += os.read(ours, 4096)

    read_until(lambda text: b"> " in text)
    os.write(ours, b"hello\n")
    read_until(lambda text: len(text) > 200)  # it talks
    os.write(ours, b"\x03")
    read_until(lambda text: text.endswith(b"> "), quiet=True)  # it asks again
    before = len(seen)
    os.write(ours, b"\x03")  # nothing to stop
    read_until(lambda text: text.endswith(b"> ") and len(text) > before)
    os.write(ours, b"\x04")
    _, error = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, error.decode()[-1500:]
    assert b"Traceback" not in error and b"Ctrl-D ends" in error


def _own_terminal() -> None:
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_bench(artifact: Path) -> None:
    command = ["bench", str(artifact), "--prompt-tokens", "20", "--batch", "1", "--batch", "2", "--rounds", "1"]
    found = json.loads(CliRunner().invoke(app, [*command, "--new-tokens", "6", "--json"]).stdout)
    assert found["backend"].startswith("onnxruntime") and found["load_seconds"] > 0
    assert found["memory_peak"] >= found["memory_loaded"] > 10_000_000
    assert [(each["batch"], each["draft_tokens"]) for each in found["timings"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for each in found["timings"]:
        assert each["prefill"] > 0 and each["decode"] > 0
        assert (each["acceptance"] is None) == (each["draft_tokens"] == 0)
        share = each["tokens_per_step"]
        assert share == 1 if each["draft_tokens"] == 0 else 1 <= share <= 2
    with load(artifact) as model:
        latent = 4 * sum(n.shape[1] * n.shape[3] for nodes in model.backend._caches.values() for n in nodes)
    assert found["cache_bytes_per_token"] == latent
    table = CliRunner().invoke(app, [*command, "--new-tokens", "4"]).stdout
    assert "prefill" in table and "accepted" in table and "memory, at most" in table
    for wrong, message in ((("--prompt-tokens", "9999"), "do not fit"), (("--batch", "99"), "more than the 32")):
        refused = CliRunner().invoke(app, ["bench", str(artifact), *wrong])
        assert refused.exit_code == 2 and message in refused.stderr
    # A context of 128 has no room for the usual 512.
    usual = CliRunner().invoke(app, ["bench", str(artifact), "--rounds", "1", "--new-tokens", "4", "--json"])
    assert {each["prompt_tokens"] for each in json.loads(usual.stdout)["timings"]} == {32}


def test_a_gpu_that_is_asked_for_is_not_overlooked(artifact: Path) -> None:
    for command in (["run", "--prompt", "a"], ["check"], ["bench"]):
        refused = CliRunner().invoke(app, [*command, str(artifact), "--device", "3"])
        assert refused.exit_code == 4 and "onnxruntime: its provider cpu knows no GPU 3; leave" in refused.stderr
