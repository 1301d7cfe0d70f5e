"""Messages between the processes that hold a model together: a dictionary each, and numpy arrays.

A frame is the length of its head, the head as JSON, and the arrays' bytes. Nothing in it is code. Both sides prove that
they know the key before anything else is read.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import secrets
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmc.errors import MachineError
from llmc.runtime.distributed.place import Place

Array = NDArray[Any]
_HEAD = struct.Struct("<Q")
_MOST_HEAD, _MOST_BYTES = 1 << 20, 1 << 36
_NONCE = 32
_GREETING = 10.0  # seconds
_AGAIN = 0.1


class Ended(Exception):
    """The other side is gone, or makes no sense."""


class Channel:
    """One connection. Sends and receives may be in different threads."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connection = connection

    def send(self, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
        arrays = [np.ascontiguousarray(array) for array in arrays]
        told = [[array.dtype.str, list(array.shape)] for array in arrays]
        head = json.dumps({"message": message, "arrays": told}).encode()
        try:
            self._connection.sendall(_HEAD.pack(len(head)) + head)
            for array in arrays:
                self._connection.sendall(array.tobytes())
        except OSError as error:
            raise Ended from error

    def receive(self) -> tuple[dict[str, Any], list[Array]]:
        """Wait for the next one; `Ended` if none comes any more."""
        (length,) = _HEAD.unpack(self.read(_HEAD.size))
        if length > _MOST_HEAD:
            raise Ended
        try:
            head = json.loads(self.read(length))
            kinds = [(np.dtype(kind), tuple(map(int, shape))) for kind, shape in head["arrays"]]
            sizes = [math.prod(shape) * kind.itemsize for kind, shape in kinds]
            if any(kind.hasobject for kind, _ in kinds) or min(sizes, default=0) < 0 or sum(sizes) > _MOST_BYTES:
                raise Ended
            arrays = [
                np.frombuffer(self.read(size), kind).reshape(shape)
                for (kind, shape), size in zip(kinds, sizes, strict=True)
            ]
            return dict(head["message"]), arrays
        except (ValueError, TypeError, KeyError) as error:
            raise Ended from error

    def read(self, count: int) -> bytes:
        found = bytearray(count)
        view, done = memoryview(found), 0
        while done < count:
            try:
                got = self._connection.recv_into(view[done:])
            except OSError as error:
                raise Ended from error
            if not got:
                raise Ended
            done += got
        return bytes(found)

    def prove(self, key: bytes, me: str, other: str) -> None:
        """Let either side show the other that it knows the key; `Ended` if the other does not."""
        self._connection.settimeout(_GREETING)
        mine = secrets.token_bytes(_NONCE)
        try:
            self._connection.sendall(mine)
            theirs = self.read(_NONCE)
            self._connection.sendall(_proof(key, me, theirs))
            if not hmac.compare_digest(self.read(_NONCE), _proof(key, other, mine)):
                raise Ended
            self._connection.settimeout(None)
        except OSError as error:
            raise Ended from error

    def close(self) -> None:
        """Also for a thread that waits in `receive`."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _proof(key: bytes, who: str, nonce: bytes) -> bytes:
    return hmac.digest(key, who.encode() + nonce, "sha256")


def listen(address: str, port: int = 0) -> socket.socket:
    """Open the port that the other ranks come to; 0: one that is free."""
    try:
        return socket.create_server((address, port), backlog=64)
    except OSError as error:
        raise MachineError(
            f"rank 0 cannot listen on {address} port {port} ({error.strerror}); set MASTER_ADDR and MASTER_PORT"
        ) from error


def gather(server: socket.socket, place: Place, timeout: float, watch: Callable[[], None]) -> dict[int, Channel]:
    """Wait for all other ranks, which `watch` may give up by raising. MachineError if one does not come in time."""
    found: dict[int, Channel] = {}
    end = time.monotonic() + timeout
    server.settimeout(_AGAIN)
    with server, contextlib.ExitStack() as undo:
        while missing := set(range(1, place.ranks)) - found.keys():
            watch()
            if time.monotonic() > end:
                raise MachineError(
                    f"rank {min(missing)} of {place.ranks} did not come to {place.address} port {place.port} within "
                    f"{timeout:.0f} s; is its process running?"
                )
            with contextlib.suppress(TimeoutError):
                rank, channel = _accepted(server.accept()[0], place, missing)
                if channel is not None:
                    found[rank] = channel
                    undo.callback(channel.close)
        undo.pop_all()
    return found


def _accepted(connection: socket.socket, place: Place, missing: Collection[int]) -> tuple[int, Channel | None]:
    """The rank that came, if it is one that was waited for, and not a stranger."""
    channel = Channel(connection)
    try:
        channel.prove(place.key, "first", "other")
        said, _ = channel.receive()
        if said.get("rank") in missing and said.get("ranks") == place.ranks:
            return said["rank"], channel
    except Ended:
        pass
    channel.close()
    return 0, None


def join(place: Place, timeout: float) -> Channel:
    """Come to rank 0, which may not be there yet. MachineError if it does not answer in time."""
    end, why = time.monotonic() + timeout, "no answer"
    while time.monotonic() < end:
        try:
            channel = Channel(socket.create_connection((place.address, place.port), _GREETING))
            try:
                channel.prove(place.key, "other", "first")
                channel.send({"rank": place.rank, "ranks": place.ranks})
                return channel
            except Ended:
                channel.close()
                why = "another program, or another key"
        except OSError as error:
            why = str(error)
        time.sleep(_AGAIN)
    raise MachineError(
        f"rank {place.rank} of {place.ranks} did not reach rank 0 at {place.address} port {place.port} within "
        f"{timeout:.0f} s ({why}); is its process running?"
    )
