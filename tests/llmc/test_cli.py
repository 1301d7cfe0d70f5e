"""The command line as a user meets it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = ("build", "plan", "check", "run", "bench", "inspect", "recipe")


def test_help_teaches(llmc) -> None:
    overview = llmc("--help").stdout
    for command in COMMANDS:
        assert command in overview
    for command in COMMANDS[:-1]:
        text = llmc(command, "--help").stdout
        assert f"llmc {command} " in text.replace("Usage: llmc", "")  # an example
        assert "--json" in text


def test_version(llmc) -> None:
    from llmc import __version__

    assert __version__ in llmc("--version").stdout


def test_plan(llmc, recipe) -> None:
    made = llmc("plan", recipe(), "--json")
    found = json.loads(made.stdout)
    assert found["experts"] == [8, 6]
    assert found["fits_memory"]
    table = llmc("plan", recipe()).stdout
    assert "8 → 6 experts per layer" in table
    assert "int4-g32" in table
    assert not Path("build").exists()


def test_plan_of_a_model(llmc, embedded: Path) -> None:
    found = json.loads(llmc("plan", "builtin:tiny-deepseek-v3", "--json").stdout)
    assert set(found["schemes"]) == {"experts"}
    assert found == json.loads(llmc("plan", embedded, "--json").stdout) | {
        key: found[key] for key in ("memory_available", "disk_free", "name")
    }


def test_inspect(llmc, recipe, small_model: Path) -> None:
    looked = json.loads(llmc("inspect", small_model, "--json").stdout)
    assert looked["family"] == "deepseek_v3"
    assert sum(role["bytes"] for role in looked["roles"].values()) == looked["bytes"]
    assert llmc("build", recipe()).exit_code == 0
    assert "top-1 agreement" in llmc("inspect", "build/small").stdout
    assert json.loads(llmc("inspect", "build/small", "--json").stdout)["format_version"] == 1


def test_run(llmc, recipe) -> None:
    assert llmc("build", recipe()).exit_code == 0
    arguments = ("run", "build/small", "--prompt", "hello", "--max-new-tokens", 8)
    streamed = llmc(*arguments)
    assert streamed.exit_code == 0
    answer = json.loads(llmc(*arguments, "--json").stdout)
    assert streamed.stdout == f"hello{answer['text']}\n"
    assert len(answer["token_ids"]) == 8 or answer["finish_reason"] == "stop"
    assert json.loads(llmc(*arguments, "--json", "--no-speculative").stdout)["token_ids"] == answer["token_ids"]
    sampled = [llmc(*arguments, "--temperature", 1, "--seed", seed).stdout for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    refused = llmc(*arguments, "--top-p", 0)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("llmc: top_p is 0.0; it has to be above 0")


def test_nothing_is_left_of_a_build_that_cannot_fit(llmc, recipe) -> None:
    refused = llmc("build", recipe(), "--memory", "1MB")
    assert refused.exit_code == 4 and "raise --memory" in refused.stderr
    assert not Path("build").exists()


def test_debug_shows_the_trace_wherever_it_stands(llmc) -> None:
    for arguments in (("--debug", "plan", "nowhere.yaml"), ("plan", "nowhere.yaml", "--debug")):
        assert "Traceback" in llmc(*arguments).stderr
    assert "Traceback" not in llmc("plan", "nowhere.yaml").stderr


def test_unexpected_errors_are_one_line(llmc, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc import job

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(job, "plan", broken)
    failed = llmc("plan", "x")
    assert failed.exit_code == 1
    assert failed.stderr == "llmc: internal error: RuntimeError: first second; --debug shows where\n"


def test_interrupt(recipe, tmp_path: Path, text_file: Path) -> None:
    """Ctrl-C: exit code 130, one line, and the work is kept."""
    path = recipe(calibration={"text": str(text_file), "samples": 500, "length": 128})
    command = [sys.executable, "-m", "llmc.cli", "build", str(path), "--output", str(tmp_path / "out")]

    def listen() -> None:  # who runs tests in the background of a shell may have Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while not (tmp_path / "out.work").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.splitlines()[-1] == "llmc: interrupted; a build goes on from here when it is started again"
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
