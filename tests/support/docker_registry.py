"""Debian's docker-registry, on a port of loopback that the kernel chooses; and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PASSWORD = "open sesame"
# bcrypt of it, for the user `somebody`
HTPASSWD = "somebody:$2b$05$6JWMCxg0mmA9Ueu65IGq5OJtQ.8YqNFhRCq2I.iemTQqxoABuFj1.\n"


@contextmanager
def docker_registry(folder: Path, htpasswd: str | None = None) -> Iterator[str]:
    """Starts one that keeps its blobs in `folder`, and yields its host and port; skips where it is not installed."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    folder.mkdir(parents=True, exist_ok=True)
    config = (
        f"version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}, delete: {{enabled: true}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n"
    )
    if htpasswd is not None:
        (folder / "htpasswd").write_text(htpasswd)
        config += f"auth: {{htpasswd: {{realm: here, path: {folder / 'htpasswd'}}}}}\n"
    (folder / "config.yml").write_text(config)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{_port(server, folder / 'log')}"
    finally:
        server.terminate()
        server.wait()


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    """As its log tells it; fails when the server ends instead."""
    waiting = threading.Event()
    for _ in range(1200):
        if found := re.search(r"listening on 127\.0\.0\.1:([0-9]+)", log.read_text()):
            return int(found[1])
        assert server.poll() is None, log.read_text()
        waiting.wait(0.1)
    raise AssertionError(log.read_text())


@dataclass
class Wire:
    """What leads to a server, over loopback; it breaks after so many bytes from there.

    Attributes:
        address: where it begins
        bytes: how many came from the server so far
        breaks: byte counts at which connections are cut; each does so once
    """

    server: tuple[str, int]
    address: str = ""
    bytes: int = 0
    breaks: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def carry(self, here: socket.socket) -> None:
        with contextlib.suppress(OSError), here, socket.create_connection(self.server) as there:
            threading.Thread(target=self._copy, args=(here, there, False), daemon=True).start()
            self._copy(there, here, True)

    def _copy(self, one: socket.socket, other: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 14):
                with self.lock:
                    self.bytes += len(data) if counts else 0
                    if counts and self.breaks and self.bytes >= self.breaks[0]:
                        self.breaks.pop(0)
                        break
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire(host: str) -> Iterator[Wire]:
    """Yields a wire to a server."""
    name, _, port = host.rpartition(":")
    made = Wire((name, int(port)))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made.address = f"127.0.0.1:{listening.getsockname()[1]}"

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    here, _ = listening.accept()
                    threading.Thread(target=made.carry, args=(here,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield made
        finally:
            listening.shutdown(socket.SHUT_RDWR)
