"""Listens, and ends: in peace when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from llmc.errors import InputError, MachineError
from llmc.files import read_regular
from llmc.runtime.model import Model
from llmc.serve.app import application
from llmc.serve.guard import Rules
from llmc.serve.service import Service

_LAST = 5.0  # seconds that clients have to read the end of their streams
_MOST_TOKEN = 4096  # bytes of a file
_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        host, port: Where to listen; port 0: where the system likes.
        name: What clients call the model.
        token: Which clients have to bring; None: none.
        anonymous: Whether others than this machine may come without a token.
        queue: The most answers that wait.
        rows: The most answers at once; None: what the backend takes.
        most_body: Bytes of a request.
        grace: Seconds that answers have to end when the server is told to.
    """

    host: str
    port: int
    name: str
    token: str | None = None
    anonymous: bool = False
    queue: int = 256
    rows: int | None = None
    most_body: int = 16 << 20
    grace: float = 30.0


def token_of(path: Path) -> str:
    """The token in a file, which is one line. InputError for none, or for something else."""
    text = read_regular(path, _MOST_TOKEN).decode("utf-8", "replace").strip()
    return checked_token(text, str(path))


def checked_token(text: str, where: str) -> str:
    """A token as it can stand in a header; InputError if it cannot."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise InputError(f"{where}: holds no token; it has to be one line of letters, digits and signs without spaces")
    return text


def listen(options: Options) -> socket.socket:
    """A socket that listens. InputError for one that everybody could use, MachineError if that port is taken."""
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise InputError(f"--host {options.host}: no such host ({error.strerror})") from error
    family, kind, protocol, _, address = found[0]
    if not (options.token or options.anonymous or _is_loopback(str(address[0]))):
        raise InputError(
            f"--host {options.host}: whoever reaches this machine could use the model; give --token-file, or "
            "--allow-anonymous if that is wanted"
        )
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        made.close()
        raise MachineError(
            f"cannot listen on {options.host}, port {options.port} ({error.strerror}); give another --port"
        ) from error
    return made


def serve(model: Model, options: Options, ready: Callable[[str], None]) -> None:
    """Serves a model until SIGTERM or SIGINT. ready: is called with the address once requests are taken."""
    listening = listen(options)
    service = Service(model, options.name, int(time.time()), options.queue, options.rows)
    try:
        asyncio.run(_run(service, options, listening, ready))
    finally:
        listening.close()
        service.scheduler.close()


async def _run(service: Service, options: Options, listening: socket.socket, ready: Callable[[str], None]) -> None:
    place = listening.getsockname()
    host = f"[{place[0]}]" if ":" in place[0] else place[0]
    hosts = {*_NAMES, options.host.lower(), host} if _is_loopback(place[0]) else ()
    app = application(service, Rules(options.token, hosts, options.most_body))
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(options.grace + _LAST),
    )
    server = _Server(config, lambda: ready(f"http://{host}:{place[1]}"))
    loop, scheduler = asyncio.get_running_loop(), service.scheduler

    def told() -> None:
        again = server.should_exit
        scheduler.refuse()
        server.should_exit = True
        loop.call_later(0 if again else options.grace, scheduler.end)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    await server.serve([listening])


class _Server(uvicorn.Server):
    """One whose signals are handled elsewhere, and which says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
