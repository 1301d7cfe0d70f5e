"""The other ranks, as the first one sees them."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmc.errors import InputError, MachineError
from llmc.runtime.backends import CLOSED
from llmc.runtime.distributed.channel import Array, Channel, Ended

# Seconds in which a step that lost a rank has to fail by itself; a GPU that waits for one cannot be told otherwise.
GRACE = 20.0
_FAREWELL = 5.0
HINDSIGHT = 1.0  # seconds after which it is known here, too, that a step failed of another rank's end


class Followers:
    """What they are told, what they answer, and what became of them.

    Attributes:
        failure: Why the ranks are no longer together; None: they are.
    """

    def __init__(self, channels: Mapping[int, Channel]) -> None:
        self.channels = dict(channels)
        self.failure: str | None = None
        self.failed = threading.Event()
        self.on_failure: list[Callable[[], None]] = []
        self._busy = False
        self._closing = False
        self._lock = threading.Lock()
        self._replies: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {
            rank: queue.SimpleQueue() for rank in self.channels
        }
        self._process = os.getpid()
        self._watchers = [
            threading.Thread(target=self._watch, args=(rank,), name=f"rank {rank}", daemon=True)
            for rank in self.channels
        ]
        for watcher in self._watchers:
            watcher.start()

    @property
    def ranks(self) -> int:
        return len(self.channels) + 1

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Within this context the process is ended if a rank is lost and what waits for it does not end by itself."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def tell(self, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
        """MachineError if the ranks are no longer together."""
        for rank, channel in self.channels.items():
            try:
                channel.send(message, arrays)
            except Ended:
                self.fail(f"rank {rank} of {self.ranks} ended; load the model again")
        self._require()

    def replies(self) -> list[dict[str, Any]]:
        """Wait for one of each. MachineError if one does not come any more."""
        found = []
        for waiting in self._replies.values():
            reply = waiting.get()
            if reply is None:
                waiting.put(None)  # for who asks next
                self._require()
            found.append(reply or {})
        self._require()
        return found

    def fail(self, reason: str) -> None:
        """The ranks are no longer together: all of them are let go, and what is under way here ends."""
        with self._lock:
            if self.failure is not None or self._closing:
                return
            self.failure = reason
        self.failed.set()
        threading.Thread(target=self._insist, daemon=True).start()
        self._let_go()  # first, so that the others end what is under way there: NCCL's abort may wait for theirs
        for act in self.on_failure:
            with contextlib.suppress(Exception):  # whatever a library says of what is broken already
                act()

    def dismiss(self) -> None:
        """Tell them that there is nothing more to do."""
        if not self._closing:
            self._closing = True
            for channel in self.channels.values():
                with contextlib.suppress(Ended):
                    channel.send({"do": "close"})

    def close(self) -> None:
        """They end without a word. Nothing happens in a process that was forked."""
        if os.getpid() != self._process:
            return
        self.dismiss()
        for watcher in self._watchers:
            watcher.join(_FAREWELL)
        self._let_go()

    def _let_go(self) -> None:
        for rank, channel in self.channels.items():
            channel.close()
            self._replies[rank].put(None)

    def _require(self) -> None:
        if self.failure is not None:
            raise MachineError(self.failure)
        if self._closing:
            raise InputError(CLOSED)

    def _watch(self, rank: int) -> None:
        try:
            while True:
                reply, _ = self.channels[rank].receive()
                if "error" in reply:
                    self.fail(f"rank {rank} of {self.ranks}: {reply['error']}")
                self._replies[rank].put(reply)
        except Ended:
            self.fail(f"rank {rank} of {self.ranks} ended; load the model again")

    def _insist(self) -> None:
        threading.Event().wait(GRACE)
        if self._busy:
            print(f"llmc: {self.failure}", file=sys.stderr, flush=True)
            os._exit(MachineError.exit_code)
