"""What `llmc serve` refuses, and how it ends."""

import http.client
import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.served import Served, served

LONG = {"prompt": "def get", "max_tokens": 900, "temperature": 1.5, "stream": True}
SHORT = {"prompt": "def get", "max_tokens": 2}
TOKEN = "a-token-of-this-test"
JSON = {"Content-Type": "application/json"}


def ask(server: Served, asked: Any, token: str | None = TOKEN, path: str = "/v1/completions") -> Any:
    """The response, whose body has not been read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    body = None if asked is None else json.dumps(asked)
    connection.request("GET" if asked is None else "POST", path, body, headers)
    return connection.getresponse()


def running(server: Served) -> str:
    page = ask(server, None, path="/metrics").read().decode()
    return " ".join(line.split()[1] for line in page.splitlines() if line.startswith(("llmc_running", "llmc_waiting")))


@pytest.fixture(scope="module")
def small(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One row, one place in the queue, one kilobyte, one token."""
    file = tmp_path_factory.mktemp("token") / "token.txt"
    file.write_text(TOKEN + "\n")
    with served(trained, "--batch", "1", "--queue", "1", "--max-body", "1kB", "--token-file", str(file)) as server:
        yield server


def test_only_who_has_the_token_comes_in(small: Served) -> None:
    for token in (None, "another", TOKEN + "x", ""):
        for path, asked in (("/v1/completions", SHORT), ("/v1/models", None), ("/metrics", None), ("/none", None)):
            response = ask(small, asked, token, path)
            assert response.status == 401 and json.loads(response.read())["error"]["type"] == "authentication_error"
    assert ask(small, None, None, "/health").status == 200
    assert ask(small, SHORT).status == 200


def test_a_full_queue_asks_to_come_again(small: Served) -> None:
    first = ask(small, LONG)
    first.readline()  # it has the row
    second = http.client.HTTPConnection("127.0.0.1", small.port, timeout=300)
    second.request("POST", "/v1/completions", json.dumps(SHORT), {"Authorization": f"Bearer {TOKEN}"} | JSON)
    while running(small) != "1.0 1.0":
        time.sleep(0.01)
    third = ask(small, SHORT)
    assert third.status == 429 and int(third.headers["Retry-After"]) >= 1
    assert json.loads(third.read())["error"]["code"] == "queue_full"
    first.close()  # hangs up, so that the second has the row
    assert second.getresponse().status == 200
    assert ask(small, SHORT | {"n": 3}).status == 400  # more than there ever is room for


def test_large_bodies_are_refused_unread(small: Served) -> None:
    assert ask(small, {"prompt": "x" * 1000}).status == 413
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=300)
    headers = {"Authorization": f"Bearer {TOKEN}", "Transfer-Encoding": "chunked"} | JSON
    parts = iter([b'{"prompt": "', b"x" * 600, b"x" * 600, b'"}'])
    connection.request("POST", "/v1/completions", parts, headers, encode_chunked=True)
    assert connection.getresponse().status == 413


def events(response: Any) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in response.read().splitlines() if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_told_to_end_it_lets_answers_end(trained: Path) -> None:
    with served(trained, "--grace", "300", LLMC_TOKEN=TOKEN) as server:
        assert ask(server, SHORT, "another").status == 401
        response = ask(server, LONG | {"max_tokens": 60, "temperature": 0})
        response.readline()
        server.process.send_signal(signal.SIGTERM)
        found = events(response)
        assert found[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert server.process.wait(300) == 0
        with pytest.raises(ConnectionRefusedError):
            ask(server, SHORT)


def test_what_does_not_end_is_ended(trained: Path) -> None:
    with served(trained, "--grace", "0", "--batch", "1") as server:
        streamed = ask(server, LONG)
        streamed.readline()
        whole = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        whole.request("POST", "/v1/completions", json.dumps(SHORT), JSON)
        while running(server) != "1.0 1.0":
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert "stopping" in events(streamed)[-1]["error"]["message"]
        assert whole.getresponse().status == 503
        assert server.process.wait(300) == 0


def test_nobody_listens_to_everybody_by_accident(trained: Path, tmp_path: Path, llmc: Any) -> None:
    for host in ("0.0.0.0", "::"):
        refused = llmc("serve", trained, "--host", host)
        assert refused.exit_code == 2 and "--token-file, or --allow-anonymous" in refused.output
    (tmp_path / "token").write_text("two words")
    refused = llmc("serve", trained, "--token-file", tmp_path / "token")
    assert refused.exit_code == 2 and "holds no token" in refused.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = llmc("serve", trained, "--port", port)
        assert refused.exit_code == 4 and f"port {port}" in refused.output and "another --port" in refused.output
    refused = llmc("serve", trained, "--host", "no such host")
    assert refused.exit_code == 2 and "no such host" in refused.output


def test_a_model_without_a_template_says_so(trained: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    asked = {"messages": [{"role": "user", "content": "def get"}], "max_tokens": 2}
    bare = shutil.copytree(trained, tmp_path / "bare")
    with served(bare, "--name", "mine", "--chat-template", str(template)) as server:
        assert server.model == "mine"
        assert ask(server, asked, path="/v1/chat/completions").status == 200
    with served(bare) as server:
        response = ask(server, asked, path="/v1/chat/completions")
        assert response.status == 400 and "no chat template" in json.loads(response.read())["error"]["message"]
