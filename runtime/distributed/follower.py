"""What all ranks but the first run: the steps that rank 0 takes, on their own part of the model."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from llmc.errors import LlmcError, MachineError
from llmc.runtime.backends import Backend
from llmc.runtime.distributed.channel import Array, Channel, Ended
from llmc.runtime.distributed.followers import GRACE, HINDSIGHT


class ToldError(MachineError):
    """An error that rank 0 knows, and will tell."""


class Orders:
    """What rank 0 tells this one, also while it works."""

    def __init__(self, channel: Channel, name: str) -> None:
        """name: of this rank, for people"""
        self.on_failure: list[Callable[[], None]] = []
        self._channel, self._name, self._line = channel, name, f"{name}: rank 0 ended; load the model again"
        self._waiting: queue.SimpleQueue[tuple[dict[str, Any], list[Array]] | None] = queue.SimpleQueue()
        self._done, self._gone = threading.Event(), threading.Event()
        threading.Thread(target=self._listen, name="rank 0", daemon=True).start()

    def next(self) -> tuple[dict[str, Any], list[Array]]:
        """MachineError if rank 0 is gone."""
        order = self._waiting.get()
        if order is None:
            self.require()
        assert order is not None
        return order

    def require(self, error: Exception | None = None) -> None:
        """MachineError if rank 0 is gone."""
        if self._gone.wait(HINDSIGHT if error else 0):
            raise MachineError(self._line) from error

    def answer(self, **said: Any) -> None:
        with contextlib.suppress(Ended):  # which `next` tells
            self._channel.send(said)

    def refuse(self, reason: str, error: Exception | None = None) -> NoReturn:
        """Tell rank 0 that this one does not go on. MachineError if that is gone, which may have been the reason."""
        self.require(error)
        self.answer(error=reason)
        raise ToldError(f"{self._name}: {reason}") from error

    def close(self) -> None:
        self._done.set()
        self._channel.close()

    def _listen(self) -> None:
        try:
            while True:
                order = self._channel.receive()
                self._waiting.put(order)
                if order[0].get("do") == "close":
                    return
        except Ended:
            self._gone.set()
            self._waiting.put(None)
        for act in self.on_failure:
            with contextlib.suppress(Exception):  # whatever a library says of what is broken already
                act()
        if not self._done.wait(GRACE):  # in a sum that never ends
            print(f"llmc: {self._line}", file=sys.stderr, flush=True)
            os._exit(MachineError.exit_code)


def follow(backend: Backend, orders: Orders) -> None:
    """Take every step that rank 0 takes, until it closes the model. MachineError if it ends otherwise."""
    caches: dict[int, Any] = {}
    while True:
        order, arrays = orders.next()
        for number in order.get("forgotten", ()):
            caches.pop(number, None)
        what = order["do"]
        if what == "close":
            return
        try:
            if what == "new_cache":
                caches[order["cache"]] = backend.new_cache(order["batch"])
            elif what == "copy":
                backend.copy(caches[order["source"]], order["rows"], order["length"], caches[order["cache"]])
            elif what == "rows":
                caches[order["cache"]] = backend.rows(caches[order["source"]], order["first"], order["count"])
            elif what == "trim":
                backend.trim(caches[order["cache"]], order["length"])
            else:
                given = dict(zip(order["given"], arrays, strict=True))
                images = (given.pop("features"), given.pop("positions")) if "features" in given else None
                backend.forward(order["graph"], caches[order["cache"]], **given, images=images)
        except Exception as error:
            if what == "new_cache" and isinstance(error, LlmcError):  # rank 0 gives it up everywhere
                orders.answer(refused=str(error))
                continue
            orders.refuse(str(error), error)
        orders.answer(done=what)
