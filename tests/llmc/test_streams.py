"""Standard streams that are closed, full, broken or ASCII: every command ends with its exit code, without a trace."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from llmc.cli import app

pytestmark = pytest.mark.slow

LLMC = shlex.join([sys.executable, "-m", "llmc.cli"])
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, small_model: Path, text_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    recipe = {
        "model": str(small_model),
        "calibration": {"text": str(text_file), "samples": 4, "length": 32},
        "quantize": [{"match": "experts", "scheme": "int4-g32", "method": "rtn"}],
        "targets": [{"onnxruntime": {}}],
        "check": {"text": str(text_file), "tokens": 64, "length": 32},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    made = CliRunner().invoke(app, ["build", str(folder / "recipe.yaml"), "--output", str(folder / "artifact")])
    assert made.exit_code == 0, made.stderr
    return folder / "artifact"


def shell(line: str, given: bytes = b"", **environment: str) -> tuple[int, str, bytes]:
    """Exit code, standard error and standard output of a line of bash in which LLMC is the command."""
    command = ["bash", "-c", "set -o pipefail; " + line.replace("LLMC", LLMC)]
    done = subprocess.run(command, input=given, capture_output=True, env=os.environ | environment, timeout=120)
    error = done.stderr.decode(errors="surrogateescape")
    assert "Traceback" not in error and "internal error" not in error and "Exception ignored" not in error, error
    return done.returncode, error, done.stdout


def test_closed_streams_are_as_good_as_dev_null(artifact: Path) -> None:
    every = "<&- >&- 2>&-"
    for closed in ("<&-", every):
        assert shell(f"LLMC run {artifact} --max-new-tokens 2 {closed}")[0] == 0
    for closed in (">&-", "2>&-"):
        assert shell(f"LLMC run {artifact} --prompt hello --max-new-tokens 2 --json {closed}")[0] == 0
    for closed in ("2>&-", every):
        assert shell(f"LLMC inspect {artifact}/nowhere {closed}")[0] == 2


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    """What a library prints would end up in them."""
    code = f"""
import os, sys
from llmc import streams
streams.prepare()
with open({str(tmp_path / "file")!r}, "wb") as file:
    assert file.fileno() > 2
print("shown"), print("told", file=sys.stderr), os.write(1, b"raw"), os.write(2, b"raw")
assert sys.stdin.read() == "" and not sys.stdin.isatty()
"""
    done = subprocess.run(["bash", "-c", f"{shlex.join([sys.executable, '-c', code])} <&- >&- 2>&-"])
    assert done.returncode == 0 and (tmp_path / "file").read_bytes() == b""


@FULL
def test_full_streams(artifact: Path) -> None:
    for line in ("--help", "--version", f"inspect {artifact}", f"run {artifact} --prompt hello --max-new-tokens 2"):
        code, error, _ = shell(f"LLMC {line} >/dev/full")
        assert code == 4 and "No space left" in error and error.count("\n") == 1
    assert shell(f"LLMC inspect {artifact}/nowhere 2>/dev/full")[0] == 2


def test_a_reader_that_has_had_enough(artifact: Path) -> None:
    for line in (f"run {artifact} --prompt hello --max-new-tokens 90", f"inspect {artifact}"):
        code, error, out = shell(f"LLMC {line} | head -c 1")
        assert code in (0, 1) and error == "" and len(out) == 1
    code, error, out = shell(f"LLMC run {artifact} --max-new-tokens 90 | head -c 1", b"hello\n" * 20)
    assert code == 1 and error == "" and len(out) == 1


def test_ascii_output(artifact: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    code, _, out = shell(f"LLMC inspect {artifact}", **ascii_only)
    assert code == 0 and "->" in out.decode("ascii")
    options = "--prompt 'größe →' --max-new-tokens 2"
    code, _, out = shell(f"LLMC run {artifact} {options}", **ascii_only)
    assert code == 0 and out.decode("ascii").startswith("gr\\xf6\\xdfe ->")
    code, _, out = shell(f"LLMC run {artifact} {options} --json", **ascii_only)
    told = json.loads(out.decode("ascii"))
    assert told["token_ids"] == json.loads(shell(f"LLMC run {artifact} {options} --json")[2])["token_ids"]
    code, error, _ = shell("LLMC inspect /größe", **ascii_only)
    assert code == 2 and "gr\\xf6\\xdfe" in error


def test_ascii_input_and_arguments_are_utf_8(artifact: Path) -> None:
    expected = shell(f"LLMC run {artifact} --prompt größe --max-new-tokens 3")[2]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, _, out = shell(f"LLMC run {artifact} --prompt größe --max-new-tokens 3", **locale)
    assert code == 0 and out.startswith(b"gr\\xf6\\xdfe")
    answer = expected.decode().removeprefix("größe")
    for environment in ({"PYTHONIOENCODING": "ascii"}, locale):
        code, _, out = shell(f"LLMC run {artifact} --max-new-tokens 3", "größe\n".encode(), **environment)
        assert code == 0 and out.decode("ascii") == answer.encode("ascii", "backslashreplace").decode()


def test_a_piped_conversation_that_fails_says_so_in_its_exit_code(artifact: Path) -> None:
    code, error, out = shell(f"LLMC run {artifact} --max-new-tokens 2", b"x" * 2000 + b"\nhello\n")
    assert code == 2 and "do not fit the context" in error and out  # the next one is answered all the same
    code, error, out = shell(f"LLMC run {artifact} --max-new-tokens 2", b"caf\xe9\nhello\n")
    assert code == 2 and error.startswith("llmc: the prompt is no valid text at character 3") and out
    assert shell(f"LLMC run {artifact} --max-new-tokens 2", b"hello\n/quit\n" + b"x" * 2000)[0] == 0
