"""A hub that lies: its client is the real one, its server runs here."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.slow

Plan = Callable[[dict[str, bytes]], "subprocess.CompletedProcess[str]"]
COMMIT = "a" * 40
ESCAPE = "\x1b]52;c;eA==\x07.json"


@pytest.fixture
def plan(tmp_path: Path) -> Iterator[Plan]:
    """`llmc plan org/evil` of a repository with these files."""
    files: dict[str, bytes] = {}

    class Hub(http.server.BaseHTTPRequestHandler):
        def reply(self) -> None:
            path = unquote(self.path.split("?")[0])
            data: bytes | None = None
            if path.startswith("/api/models/org/evil/tree"):
                oids = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
                listed = [{"type": "file", "oid": oids[n], "size": len(files[n]), "path": n} for n in files]
                data = json.dumps(listed).encode()
            elif path.startswith("/api/models/org/evil"):
                siblings = [{"rfilename": name} for name in files]
                data = json.dumps({"id": "org/evil", "sha": COMMIT, "siblings": siblings}).encode()
            elif "/resolve/" in path:
                data = files.get(path.split("/resolve/", 1)[1].split("/", 1)[1])
            self.send_response(404 if data is None else 200)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(data or b"")))
            self.send_header("ETag", f'"{hashlib.sha1(data or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if data and self.command == "GET":
                self.wfile.write(data)

        do_GET = do_HEAD = reply  # http.server looks for these names

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf"), "no_proxy": "*"}

    def run(repository: dict[str, bytes]) -> subprocess.CompletedProcess[str]:
        files.update(repository)
        command = [sys.executable, "-m", "llmc.cli", "plan", "org/evil"]
        environment = os.environ | hub | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    yield run
    server.shutdown()
    server.server_close()


def shard(**entry: object) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def spoken(checkpoint: Path) -> dict[str, bytes]:
    return {name: (checkpoint / name).read_bytes() for name in ("config.json", "tokenizer.json")}


@pytest.mark.parametrize("kind", ["absolute", "above"])
def test_an_index_names_no_file_outside(plan: Plan, embedded: Path, tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim.safetensors"
    victim.write_text("precious")
    name = str(victim) if kind == "absolute" else f"../../../../../../../..{victim}"
    index = json.dumps({"metadata": {}, "weight_map": {"w": name}}).encode()
    files = spoken(embedded) | {"model.safetensors.index.json": index}
    files |= dict.fromkeys(("model.safetensors", name, name.lstrip("/")), shard())
    made = plan(files | {"../above.json": b"{}", ESCAPE: b"{}", "folder/x.json": b"{}"})
    assert made.returncode == 2, made.stderr
    assert "only safetensors files in the repository's main folder are read" in made.stderr
    assert victim.read_text() == "precious"
    assert "\x1b]52" not in made.stderr
    downloaded = {path.name for path in (tmp_path / "hf").rglob("snapshots/*/**/*")}
    assert downloaded == {*spoken(embedded), "model.safetensors.index.json"}


def test_headers_promise_no_more_than_a_file_can_hold(plan: Plan, embedded: Path) -> None:
    made = plan(spoken(embedded) | {"model.safetensors": shard(data_offsets=[0, 1 << 60])})
    assert made.returncode == 2, made.stderr
    assert "model.safetensors: broken safetensors header at 'w'" in made.stderr


UNREADABLE = "model org/evil: the hub's client cannot read what is there ("


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"shape": 3}, "model.safetensors: broken safetensors header at w"),
        ({"shape": ["x"]}, UNREADABLE),
        ({"data_offsets": None}, UNREADABLE),
        ({"dtype": 4}, "model.safetensors: w has the unknown dtype 4"),
        ({"shape": None}, "model.safetensors: broken safetensors header at w"),
    ],
)
def test_headers_of_other_types(plan: Plan, embedded: Path, entry: dict[str, object], told: str) -> None:
    made = plan(spoken(embedded) | {"model.safetensors": shard(**entry)})
    assert made.returncode == 2, made.stderr
    assert told in made.stderr
    assert made.stderr.count("llmc: ") == 1 and "Traceback" not in made.stderr
