"""Who is answered when: a bounded queue in front of the running batch, and the thread that makes its steps.

Requests come from the event loop. Only the thread touches the batch; what an answer has become after a step is handed
over as `Piece`s, which nobody changes any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from llmc.errors import LlmcError
from llmc.runtime.logprobs import TokenLogprob
from llmc.runtime.running_batch import RunningBatch
from llmc.runtime.sequence import GeneratedSequence
from llmc.serve.metrics import Metrics
from llmc.serve.refusal import Refusal

_REMEMBERS = 0.9  # of the mean that Retry-After is made of
STOPPING = "this server is stopping; ask again, or ask another one"


@dataclass(frozen=True)
class Piece:
    """What is new of one answer.

    Attributes:
        index: Of the answer among those of the request.
        tokens: How many it has by now.
        finish_reason: Of an answer that has ended.
    """

    index: int
    text: str
    logprobs: list[TokenLogprob]
    tokens: int
    finish_reason: str | None


class Ticket:
    """A request's answers while they are made."""

    def __init__(self, answers: Sequence[GeneratedSequence], loop: asyncio.AbstractEventLoop) -> None:
        self.answers, self.loop = list(answers), loop
        self.arrived, self.cancelled, self.ended = time.monotonic(), False, False
        self.queue: asyncio.Queue[Piece | Refusal] = asyncio.Queue()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield until every answer has ended. Refusal when that is not to be."""
        left = len(self.answers)
        while left:
            piece = await self.queue.get()
            if isinstance(piece, Refusal):
                raise piece
            left -= piece.finish_reason is not None
            self.ended = not left
            yield piece


class _Row:
    """An answer that waits or is made, and how much of it was handed over."""

    def __init__(self, ticket: Ticket, index: int) -> None:
        self.ticket, self.index, self.answer = ticket, index, ticket.answers[index]
        self.text = self.tokens = self.logprobs = 0
        self.joined = 0.0

    def piece(self) -> Piece | None:
        answer = self.answer
        if len(answer.tokens) == self.tokens and not answer.done:
            return None
        text, logprobs = answer.text[self.text :], answer.logprobs[self.logprobs :]
        self.text, self.tokens, self.logprobs = len(answer.text), len(answer.tokens), len(answer.logprobs)
        return Piece(self.index, text, logprobs, self.tokens, answer.finish_reason)


class Scheduler:
    """Answers tickets, first come, first served.

    Attributes:
        queue: The most answers that wait.
        failure: Why there will be no more answers; None: there will be.
    """

    def __init__(self, batch: RunningBatch, queue: int, metrics: Metrics) -> None:
        self.queue = queue
        self.failure: str | None = None
        self._batch, self._metrics = batch, metrics
        self._changed = threading.Condition()
        self._waiting: deque[_Row] = deque()
        self._rows: dict[int, _Row] = {}  # of the batch, by the answer's id
        self._gone = self._over = False
        self._mean = 0.0  # seconds that an answer has its row
        metrics.watch(lambda: batch.active, lambda: len(self._waiting), batch.rows)
        self._thread = threading.Thread(target=self._work, name="llmc steps", daemon=True)
        self._thread.start()

    @property
    def most(self) -> int:
        """Answers that a request can have, whoever else is there."""
        return self.queue + self._batch.rows

    def submit(self, ticket: Ticket) -> None:
        """Puts its answers into the queue, all or none: Refusal when there is no room, or never will be."""
        rows = [_Row(ticket, index) for index in range(len(ticket.answers))]
        with self._changed:
            if self.failure is not None:
                raise Refusal(503, self.failure, headers={"Retry-After": "10"})
            if len(rows) > self.most:
                raise Refusal(400, f"{len(rows)} answers in one request; this server takes {self.most} at once")
            there = len(self._waiting) + len(self._rows)
            if there + len(rows) > self.most:
                seconds = max(1, math.ceil(self._mean * (there + 1) / self._batch.rows))
                message = f"{there} answers are being made or waited for; ask again in {seconds} s"
                raise Refusal(429, message, code="queue_full", headers={"Retry-After": str(seconds)})
            self._waiting += rows
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Frees the rows of a ticket that nobody waits for any longer; of one that has ended there are none."""
        if ticket.ended:
            return
        with self._changed:
            ticket.cancelled = self._gone = True
            self._changed.notify()

    def refuse(self, why: str = STOPPING) -> None:
        """Takes no more tickets."""
        with self._changed:
            self.failure = self.failure or why

    def end(self, why: str = STOPPING) -> None:
        """Takes no more tickets, and gives up those there are."""
        with self._changed:
            self.failure = self.failure or why
            self._over = True
            self._changed.notify()

    def close(self) -> None:
        """Ends, and waits for the pass under way."""
        self.end()
        self._thread.join()

    def _work(self) -> None:
        try:
            while self._next():
                if not self._batch.busy:
                    continue
                start = time.monotonic()
                try:
                    self._batch.step()
                except LlmcError as error:  # the batch is empty now
                    self._give_up(list(self._rows.values()), Refusal(500, str(error)))
                else:
                    self._hand_over()
                self._metrics.step.observe(time.monotonic() - start)
        except Exception as error:
            self.refuse(f"internal error: {type(error).__name__}: {error}; start the server again")
            raise
        finally:
            with self._changed:
                rows = [*self._waiting, *self._rows.values()]
                self._waiting.clear()
            self._give_up(rows, Refusal(503, self.failure or STOPPING))

    def _next(self) -> bool:
        """Waits for something to do, and has those join for whom there is room; False at the end."""
        with self._changed:
            while not (self._over or self._gone or self._waiting or self._batch.busy):
                self._changed.wait()
            if self._over:
                return False
            gone, self._gone = self._gone, False
            if gone:
                cancelled = [row for row in self._waiting if row.ticket.cancelled]
                self._waiting = deque(row for row in self._waiting if not row.ticket.cancelled)
            count = self._batch.fitting([row.answer for row in self._first()])
        if gone:
            cancelled += [row for row in self._rows.values() if row.ticket.cancelled]
            self._batch.leave(self._wanted)
            for row in cancelled:
                self._rows.pop(id(row.answer), None)
                self._metrics.answers.labels("cancelled").inc()
        with self._changed:
            joining = [self._waiting.popleft() for _ in range(count)]
            self._rows |= {id(row.answer): row for row in joining}
        for row in joining:
            row.joined = time.monotonic()
            self._metrics.waited.observe(row.joined - row.ticket.arrived)
            self._metrics.prompt_tokens.inc(len(row.answer.prompt))
        if joining:
            self._batch.join([row.answer for row in joining])
        return True

    def _wanted(self, answer: GeneratedSequence) -> bool:
        """Whether somebody waits for more of it."""
        row = self._rows.get(id(answer))
        return row is not None and not row.ticket.cancelled

    def _first(self) -> list[_Row]:
        return [self._waiting[place] for place in range(min(len(self._waiting), self._batch.rows))]

    def _hand_over(self) -> None:
        """Tells all tickets what is new, in one call of each loop."""
        news: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Piece | Refusal]]] = {}
        now = time.monotonic()
        for row in list(self._rows.values()):
            before = row.tokens
            piece = row.piece()
            if piece is None:
                continue
            news.setdefault(row.ticket.loop, []).append((row.ticket, piece))
            self._metrics.new_tokens.inc(piece.tokens - before)
            if not before:
                self._metrics.first_token.observe(now - row.ticket.arrived)
            if piece.finish_reason:
                self._count(row, piece.finish_reason, now)
        for loop, pieces in news.items():
            _tell(loop, pieces)

    def _count(self, row: _Row, reason: str, now: float) -> None:
        """An answer that has ended."""
        with self._changed:
            del self._rows[id(row.answer)]
        took = now - row.joined
        self._mean = _REMEMBERS * self._mean + (1 - _REMEMBERS) * took if self._mean else took
        self._metrics.answers.labels(reason).inc()
        self._metrics.answered.observe(now - row.ticket.arrived)
        self._metrics.drafted.inc(row.answer.drafted)
        self._metrics.accepted.inc(row.answer.accepted)

    def _give_up(self, rows: Sequence[_Row], why: Refusal) -> None:
        with self._changed:
            for row in rows:
                self._rows.pop(id(row.answer), None)
        for row in rows:
            self._metrics.answers.labels("error").inc()
            _tell(row.ticket.loop, [(row.ticket, why)])


def _tell(loop: asyncio.AbstractEventLoop, news: list[tuple[Ticket, Piece | Refusal]]) -> None:
    def put() -> None:
        for ticket, piece in news:
            ticket.queue.put_nowait(piece)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
        loop.call_soon_threadsafe(put)
