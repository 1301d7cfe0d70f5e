"""Who may come in, and with how much: a token, hosts, the size of a body. In front of all that reads requests."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmc.serve.metrics import Metrics
from llmc.serve.refusal import Refusal

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
_OPEN = ("/health",)  # to whoever balances loads
_BODY_SECONDS = 60.0


@dataclass(frozen=True)
class Rules:
    """What is let in.

    Attributes:
        token: That every request has to bring; None: none.
        hosts: By which this server may be called, without a token, so that no web page of a name that leads here can
            ask it; empty: by any.
        most_body: Bytes of a request.
    """

    token: str | None = field(default=None, repr=False)
    hosts: Collection[str] = ()
    most_body: int = 16 << 20


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics) -> None:
        self._app, self._rules, self._metrics = app, rules, metrics
        self._digest = _digest(rules.token.encode()) if rules.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no web sockets
            return
        path = scope["path"] if scope["path"] in PATHS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            self._admit(path, Headers(scope=scope))
            read = await self._body(Headers(scope=scope), receive)
        except Refusal as refusal:
            await refusal.response()(scope, receive, counted)
            return
        await self._app(scope, read, counted)

    def _admit(self, path: str, headers: Headers) -> None:
        if self._digest is None:
            host = headers.get("host", "").rpartition("]")  # of [::1]:8000
            name = f"{host[0]}]" if host[1] else host[2].partition(":")[0]
            if self._rules.hosts and name.lower() not in self._rules.hosts:
                raise Refusal(403, f"this server is not called {name!r}; give it a token to reach it by other names")
        elif path not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(_digest(given.strip().encode("latin-1")), self._digest)
            if scheme.lower() != "bearer" or not right:
                message = (
                    "this server wants a token: Authorization: Bearer TOKEN" if not given else "the token is wrong"
                )
                raise Refusal(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, headers: Headers, receive: Receive) -> Receive:
        """Reads the body, which is too large or comes to its end, and gives it again."""
        too_large = Refusal(413, f"the body is larger than {self._rules.most_body:,} bytes; shorten it")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._rules.most_body:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _again(message, receive)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._rules.most_body:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {_BODY_SECONDS:.0f} s") from None
        return _again({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


def _again(message: Message, receive: Receive) -> Receive:
    """A message, and what comes behind it."""
    waiting = [message]

    async def read() -> Message:
        return waiting.pop() if waiting else await receive()

    return read


def _digest(token: bytes) -> bytes:
    """Of one length for all tokens, so that not even that can be measured."""
    return hashlib.sha256(token).digest()
