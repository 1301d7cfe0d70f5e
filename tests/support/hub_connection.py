"""One connection to the hub of `hub_server`: requests are taken, counted and answered, or fail as they were told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub_store import Missing, Repository

_PIECE = 1 << 16


@dataclass
class Exchange:
    """One request: what came of its body and went of the answer's."""

    method: str
    path: str
    authorized: bool
    status: int = 0
    received: int = 0
    sent: int = 0
    agent: str = ""


@dataclass
class Fault:
    """What becomes of the next `times` requests whose method and path `match`.

    With `after` the connection is cut when so many bytes of a body came or went; otherwise `status` is answered.
    """

    match: re.Pattern[str]
    times: int
    status: int = 503
    after: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Cut(Exception):
    """The connection ends here."""


class Answer(Exception):
    """Not a fault: what is answered at once."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """What all connections share: repositories, what was asked, and which requests are to fail."""

    def __init__(self, folder: Path, part_bytes: int, page: int) -> None:
        self.folder, self.part_bytes, self.page = folder, part_bytes, page
        self.url = self.storage_url = self.signature = ""
        self.tokens = {"hf_writer": ("me", "write"), "hf_reader": ("me", "read"), "hf_other": ("other", "write")}
        self.repositories: dict[str, Repository] = {}
        self.exchanges: list[Exchange] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def fail(self, match: str, status: int = 503, times: int = 1, **headers: str) -> None:
        """Answer so the next times that `METHOD path` matches."""
        self.faults.append(Fault(re.compile(match), times, status, None, headers))

    def cut(self, match: str, after: int, times: int = 1) -> None:
        """Cut the connection behind `after` bytes of a body, the next times that `METHOD path` matches."""
        self.faults.append(Fault(re.compile(match), times, 0, after))

    def matching(self, match: str) -> list[Exchange]:
        return [each for each in self.exchanges if re.search(match, f"{each.method} {each.path}")]

    def count(self, match: str) -> int:
        return len(self.matching(match))

    def received(self, match: str) -> int:
        """Bytes of bodies that came."""
        return sum(each.received for each in self.matching(match))

    def sent(self, match: str) -> int:
        """Bytes of bodies that went."""
        return sum(each.sent for each in self.matching(match))

    def forget(self) -> None:
        """Count anew."""
        self.exchanges.clear()

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise Missing("RepoNotFound")
        return self.repositories[name]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Content of every file but .gitattributes."""
        found = self.repository(name)
        files = found.resolve(revision).files
        return {path: found.content(blob) for path, blob in files.items() if path != ".gitattributes"}

    def take_fault(self, exchange: Exchange) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.match.search(f"{exchange.method} {exchange.path}"):
                    fault.times -= 1
                    return fault
        return None


class Connection(BaseHTTPRequestHandler):
    """One connection, kept open from request to request."""

    hub: Hub
    routes: ClassVar[list[tuple[str, Callable[..., None]]]] = []
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.place, self.query = unquote(address.path), parse_qs(address.query)
        authorization = self.headers.get("Authorization", "")
        self.exchange = Exchange(self.command, self.place, bool(authorization), agent=self.headers["User-Agent"] or "")
        self.hub.exchanges.append(self.exchange)
        self.user, self.role = self.hub.tokens.get(authorization.removeprefix("Bearer "), ("", ""))
        self.fault = self.hub.take_fault(self.exchange)
        self.body = b""
        try:
            self.body = b"".join(self._receive())
            if self.fault and self.fault.after is None:
                return self._send(self.fault.status, b"{}", self.fault.headers)
            if authorization and not self.user:
                raise Answer(401, "Invalid credentials in Authorization header")
            for pattern, serve in self.routes:
                match = re.fullmatch(pattern, f"{self.command} {self.place}")
                if match and (self.command != "HEAD" or "resolve" in pattern):
                    with self.hub.lock:
                        serve(self, *match.groups())
                    break
            else:
                raise Answer(404, f"no such address: {self.command} {self.place}")
        except Missing as missing:
            # As the hub does: whether a private repository exists is nobody's business.
            status = 404 if self.user or missing.code != "RepoNotFound" else 401
            self._send(status, b"{}", {"X-Error-Code": missing.code, "X-Error-Message": missing.code})
        except Answer as answer:
            headers = {"X-Error-Message": str(answer)} | ({"X-Error-Code": answer.code} if answer.code else {})
            self._send(answer.status, json.dumps({"error": str(answer)}).encode(), headers)
        except Cut:
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _receive(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                yield from self._read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._read(int(self.headers.get("Content-Length") or 0))

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            limit = self.fault.after if self.fault else None
            if limit is not None and self.exchange.received >= limit:
                raise Cut
            piece = self.rfile.read(min(size, _PIECE, size if limit is None else limit - self.exchange.received))
            if not piece:
                raise Cut
            self.exchange.received += len(piece)
            size -= len(piece)
            yield piece

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.exchange.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = len(body) if self.fault is None or self.fault.after is None else self.fault.after
        for start in range(0, min(limit, len(body)), _PIECE):
            piece = body[start : min(start + _PIECE, limit)]
            self.wfile.write(piece)
            self.exchange.sent += len(piece)
        if limit < len(body):
            self.wfile.flush()
            raise Cut

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def _given(self) -> Any:
        return json.loads(self.body or b"null") or {}

    def _repository(self, name: str, write: bool = False) -> Repository:
        found = self.hub.repository(name)
        if found.private and self.user != name.partition("/")[0]:
            raise Missing("RepoNotFound")
        if write and (self.role != "write" or self.user != name.partition("/")[0]):
            raise Answer(403, "you have no rights to write here")
        return found
