"""Data sets of a hub that is played by a server on loopback; the client is the real one, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from llmc.errors import InputError
from llmc.hub_texts import DataSet, _of_split, _some

COMMIT = "0123456789abcdef0123456789abcdef01234567"
README = """---
configs:
- config_name: chats
  default: true
  data_files:
  - {split: train, path: "chats/part-*.parquet"}
  - {split: test, path: [chats/test.jsonl]}
- config_name: other
  data_files: other.jsonl
---
A data set.
"""
READ = """
import json, sys
from llmc.errors import LlmcError
from llmc.hub_texts import hub_documents
for text in sys.argv[1:]:
    try:
        read = hub_documents(text)
        print(json.dumps([list(read.found), read.kind]))
    except LlmcError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Name → content of org/set; org/plain has the files in data/ alone."""
    found = {"README.md": README.encode(), "chats/test.jsonl": b'{"text": "t"}\n', "other.jsonl": b'{"text": "o"}\n'}
    for number in range(2):
        parquet.write_table(pyarrow.table({"text": [f"{number}a", f"{number}b"]}), tmp_path / "p")
        found[f"chats/part-{number}.parquet"] = (tmp_path / "p").read_bytes()
    return found | {"data/train.jsonl": b'{"text": "p"}\n', "data/test.jsonl": b'{"text": "no"}\n', "run.py": b"1/0"}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "datasets"] and parts[3] in ("set", "plain"):
                names = files if parts[3] == "set" else [name for name in files if name.startswith("data/")]
                siblings = [{"rfilename": name, "size": len(files[name])} for name in names]
                body = json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode()
                self.answer(body)
            elif parts[0] == "datasets" and parts[3:5] == ["resolve", COMMIT] and "/".join(parts[5:]) in files:
                self.answer(files["/".join(parts[5:])])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def read(home: Path, port: int, *texts: str, **environment: str) -> list[list[object]]:
    variables = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home)} | environment
    variables.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-c", READ, *texts]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_data_sets(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    port = hub.server_address[1]
    texts = ("hub:org/set", "hub:org/set:test", "hub:org/set:other/train@v1", "hub:org/plain")
    found = read(tmp_path, port, *texts, "hub:org/set:test2", "hub:org/set:none/train", "hub:org/missing")
    kind = f"records read by `text`, revision {COMMIT[:12]}"
    assert found[:4] == [[["0a", "0b", "1a", "1b"], kind], [["t"], kind], [["o"], kind], [["p"], kind]]
    assert found[4][0] == "InputError" and "text hub:org/set:test2: unknown split 'test2'" in str(found[4][1])
    assert found[5][0] == "InputError" and "unknown configuration 'none'" in str(found[5][1])
    assert found[6][0] == "MachineError"
    assert "text hub:org/missing: not in the cache, and the hub says:" in str(found[6][1])
    hub.shutdown()
    hub.server_close()
    assert read(tmp_path, port, *texts, HF_HUB_OFFLINE="1") == found[:4]
    (never,) = read(tmp_path, port, "hub:org/set:other/train", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert never[0] == "MachineError" and "not in the cache" in str(never[1])


def test_ids() -> None:
    assert DataSet.parse("hub:a/b") == DataSet("a/b", None, "train", None)
    assert DataSet.parse("hub:a/b:c/d@e/f") == DataSet("a/b", "c", "d", "e/f")
    assert DataSet.parse("hub:b").repo == "b"
    for text in ("hub:", "hub:a/../b", "hub:a/b:c/d/e", "hub:a/b@", "hub:a b/c"):
        with pytest.raises(InputError, match="is no data set; write hub:org/name"):
            DataSet.parse(text)


def test_files_by_their_names() -> None:
    plain = DataSet("a/b", None, "train", None)
    assert _of_split(plain, ["b.jsonl", "a.parquet", "x.py", "restrain.csv"], False) == ["a.parquet", "b.jsonl"]
    names = ["d/train-0.parquet", "d/test-0.parquet", "README.md"]
    assert _of_split(plain, names, False) == ["d/train-0.parquet"]
    assert _of_split(DataSet("a/b", "e", "test", None), [*names, "e/test/0.parquet"], True) == ["e/test/0.parquet"]
    sizes = {f"train-{number}": 1 << 27 for number in range(100)}
    assert len(_some(list(sizes), sizes)) == 4 and _some(list(sizes), sizes) == _some(list(sizes)[::-1], sizes)
