"""What rank 0 runs: a backend like any other, whose every step the other ranks take, too."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import numpy as np

from llmc.errors import InputError, LlmcError, MachineError
from llmc.runtime.backends import (
    CLOSED,
    Backend,
    BoolArray,
    FloatArray,
    Graph,
    Hidden,
    ImageFeatures,
    IntArray,
    require_room,
)
from llmc.runtime.distributed.channel import Array
from llmc.runtime.distributed.followers import HINDSIGHT, Followers
from llmc.runtime.distributed.nccl import Communicator
from llmc.runtime.distributed.processes import Processes

_Found = TypeVar("_Found")


class Refused(MachineError):
    """There is no memory for a cache. The ranks stay together."""


def _end(followers: Followers, processes: Processes | None) -> None:
    followers.close()
    if processes is not None:
        processes.close()


@dataclass(eq=False)
class SharedCache:
    """One that every rank has a part of. number: as all of them know it."""

    part: Any
    number: int


class Leader:
    """Steps are taken in one thread, one after the other: an interrupted caller leaves no step half told."""

    def __init__(
        self, backend: Backend, followers: Followers, communicator: Communicator, processes: Processes | None = None
    ) -> None:
        """processes: of the other ranks, where they were started for this one."""
        self.context, self.original_context = backend.context, backend.original_context
        self.batch, self.max_prefill_tokens = backend.batch, backend.max_prefill_tokens
        self.max_attention_scores = backend.max_attention_scores
        self.has_mtp, self.has_vision, self.cache_bytes = backend.has_mtp, backend.has_vision, backend.cache_bytes
        self._backend, self._followers, self._communicator = backend, followers, communicator
        self.processes = processes
        self._steps = ThreadPoolExecutor(1, "llmc ranks")
        self._numbers = count()
        self._forgotten: deque[int] = deque()  # filled from destructors, which may run at any time in any thread
        self._let_go = weakref.finalize(self, _end, followers, processes)

    def new_cache(self, batch: int) -> SharedCache:
        number = next(self._numbers)

        def make() -> Any:
            self._tell({"do": "new_cache", "cache": number, "batch": batch})
            refused: str | None = None
            try:
                part = self._backend.new_cache(batch)
            except LlmcError as error:
                refused = str(error)
            said = [reply["refused"] for reply in self._followers.replies() if "refused" in reply]
            if refused or said:
                self._forgotten.append(number)
                raise Refused(refused or said[0])
            return part

        cache = SharedCache(self._run(make), number)
        weakref.finalize(cache, self._forgotten.append, number)
        return cache

    def forward(
        self,
        graph: Graph,
        cache: SharedCache,
        input_ids: IntArray,
        cache_position: IntArray,
        logits_index: IntArray,
        hidden: Hidden | None = None,
        long: BoolArray | None = None,
        images: ImageFeatures | None = None,
    ) -> tuple[FloatArray, Hidden | None]:
        require_room(cache_position, input_ids, self.context)
        given: dict[str, Array | None] = {
            "input_ids": input_ids,
            "cache_position": cache_position,
            "logits_index": logits_index,
            "hidden": hidden,
            "long": long,
            "features": images and images[0],
            "positions": images and images[1],
        }
        there = {name: np.asarray(array) for name, array in given.items() if array is not None}
        message = {"do": "forward", "graph": graph, "cache": cache.number, "given": list(there)}

        def step() -> tuple[FloatArray, Hidden | None]:
            self._tell(message, list(there.values()))
            found = self._backend.forward(
                graph, cache.part, input_ids, cache_position, logits_index, hidden, long, images
            )
            self._followers.replies()
            return found

        return self._run(step)

    def copy(self, source: SharedCache, rows: Sequence[int], length: int, target: SharedCache) -> None:
        message = {"do": "copy", "source": source.number, "rows": list(map(int, rows)), "length": length}

        def step() -> None:
            self._tell(message | {"cache": target.number})
            self._backend.copy(source.part, rows, length, target.part)
            self._followers.replies()

        self._run(step)

    def rows(self, cache: SharedCache, first: int, count: int) -> SharedCache:
        number = next(self._numbers)

        def step() -> Any:
            self._tell({"do": "rows", "source": cache.number, "first": first, "count": count, "cache": number})
            part = self._backend.rows(cache.part, first, count)
            self._followers.replies()
            return part

        rows = SharedCache(self._run(step), number)
        weakref.finalize(rows, self._forgotten.append, number)
        return rows

    def trim(self, cache: SharedCache, length: int) -> None:
        def step() -> None:
            self._tell({"do": "trim", "cache": cache.number, "length": length})
            self._backend.trim(cache.part, length)
            self._followers.replies()

        self._run(step)

    def image_features(self, pixels: FloatArray) -> FloatArray:
        """On this machine's CPU alone."""
        return self._backend.image_features(pixels)

    def close(self) -> None:
        self._steps.shutdown()
        self._followers.dismiss()
        self._backend.close()
        if self._followers.failure is None:
            self._communicator.close()
        self._let_go()

    def _tell(self, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
        forgotten = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        self._followers.tell({**message, "forgotten": forgotten}, arrays)

    def _run(self, step: Callable[[], _Found]) -> _Found:
        def guarded() -> _Found:
            try:
                with self._followers.working():
                    return step()
            except Refused:
                raise
            except Exception as error:
                if self._followers.failed.wait(HINDSIGHT):
                    raise MachineError(self._followers.failure) from error
                self._followers.fail(f"rank 0 of {self._followers.ranks} failed ({error}); load the model again")
                raise

        try:
            return self._steps.submit(guarded).result()
        except RuntimeError as error:
            if not self._let_go.alive:
                raise InputError(CLOSED) from error
            raise
