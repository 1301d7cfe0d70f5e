"""An answer while it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

from llmc.runtime.sequence import GeneratedSequence, Generation


class Stream(Iterator[str]):
    """Pieces of text as they become certain. It ends by itself, by `cancel`, or when nobody holds it any longer."""

    def __init__(self, answer: GeneratedSequence, run: Callable[[Callable[[], bool]], Iterator[None]]) -> None:
        self._answer, self._given, self._cancelled = answer, 0, False
        self._run: Iterator[None] | None = run(lambda: self._cancelled)

    def __repr__(self) -> str:
        ended = ", ended" if self._run is None else ""
        return f"Stream({self._answer.text!r}{ended})"

    def __next__(self) -> str:
        while not self._cancelled:
            if piece := self._answer.text[self._given :]:
                self._given += len(piece)
                return piece
            if self._run is None:
                break
            try:
                next(self._run)
            except BaseException as error:
                self._run = None  # caches are given back
                if not isinstance(error, StopIteration):
                    raise
        self._run = None
        raise StopIteration

    def cancel(self) -> None:
        """Ends it after the pass under way; may be called from another thread."""
        self._cancelled = True

    @property
    def generation(self) -> Generation:
        """What there is of the answer so far, and its counters."""
        return self._answer.generation()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._run = None
