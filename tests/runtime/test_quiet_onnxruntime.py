"""ONNX Runtime reports nothing: no files below the home folder, no connection, however the runtime comes to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.source_files import EVERYWHERE, REPOSITORY, imported_modules, sources

HOME = "runtime/quiet_onnxruntime.py"
GENERATE = """
import os, sys
from llmc.runtime import load
with load(sys.argv[1], threads=1) as model:
    model.generate("ab", max_new_tokens=2)
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
OTHER_FIRST = """
import warnings
import onnxruntime
off = onnxruntime.disable_telemetry_events
onnxruntime.disable_telemetry_events = lambda: (print("off"), off())
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import llmc.runtime.quiet_onnxruntime
print(said[0].message)
"""


@pytest.fixture
def asked() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy on the loopback, and the first line of all that it is asked for."""
    requests: list[bytes] = []

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            requests.append(connection.recv(300).split(b"\r\n")[0])
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", requests


def run(code: str, artifact: Path, home: Path, proxy: str, **more: str) -> tuple[str, list[Path]]:
    """What a process in a home of its own printed, and the files that are there afterwards."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "CI")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    environment |= {"HOME": str(home)} | dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), proxy) | more
    command = [sys.executable, "-c", code, str(artifact)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), [path for path in home.rglob("*") if path.is_file()]


def test_it_writes_nothing_and_asks_nobody(dense: Path, tmp_path: Path, asked: tuple[str, list[bytes]]) -> None:
    proxy, requests = asked
    assert run(GENERATE, dense, tmp_path / "home", proxy) == ("1", [])
    assert requests == []


def test_who_wants_its_reports_keeps_them(dense: Path, tmp_path: Path, asked: tuple[str, list[bytes]]) -> None:
    """Which also shows that the test above would see them."""
    said, files = run(GENERATE, dense, tmp_path / "home", asked[0], ORT_DISABLE_TELEMETRY="0")
    assert said == "0" and any(path.name == "deviceid" for path in files)


def test_it_is_turned_off_where_something_else_imported_it(
    dense: Path, tmp_path: Path, asked: tuple[str, list[bytes]]
) -> None:
    said, _ = run(OTHER_FIRST, dense, tmp_path / "home", asked[0])
    assert said.startswith("off\nonnxruntime was imported before llmc")


def test_nothing_else_imports_it() -> None:
    for path in sources(*EVERYWHERE):
        names = {name.split(".")[0] for name, _ in imported_modules(path)}
        assert ("onnxruntime" in names) == (path == REPOSITORY / HOME), path
