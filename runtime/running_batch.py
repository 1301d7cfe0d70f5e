"""Answers that are made together, of which others join and leave while the rest go on: continuous batching.

All rows lie in one cache. Those in front are being continued; behind them are the newcomers, whose prompts are read in
passes of their own, between two steps of the others. Where a row leaves, the last one takes its place, so that steps
are always over the first rows of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from llmc.runtime import arguments
from llmc.runtime.decoding import Decoder
from llmc.runtime.sampling import SamplingParams
from llmc.runtime.sequence import GeneratedSequence

if TYPE_CHECKING:
    from llmc.runtime.generator import Prompt
    from llmc.runtime.model import Model

_TOKENS = 1024  # of newcomers that are read together, padding included: what the others have to wait for


class RunningBatch:
    """What a model says, of a changing set of prompts. Use it from one thread.

        batch = RunningBatch(model)
        batch.join([batch.answer("def get", parameters)])
        while batch.busy:
            batch.step()

    Attributes:
        rows: The most answers that it has at once.
    """

    _newcomers: Decoder | None  # whose prompts are being read, in rows from `_place` on
    _reading: Iterator[None]
    _unwanted: set[int]  # those of them that were given up, by id

    def __init__(self, model: Model, rows: int | None = None) -> None:
        """Rows: at most what the backend takes, which is the default. InputError for less than one."""
        most = model.backend.batch
        self.rows = most if rows is None else min(most, arguments.whole("rows", rows, 1))
        self._model, self._backend = model, model.backend
        self._new()

    def answer(self, prompt: Prompt, parameters: SamplingParams) -> GeneratedSequence:
        """An answer that has not begun, for `join`; from any thread.

        InputError for a prompt that the model cannot read, or that does not fit its context.
        """
        return self._model._answer(prompt, parameters)

    @property
    def free(self) -> int:
        """How many answers could join; none while others are being read."""
        return 0 if self._newcomers else self.rows - len(self._running.answers)

    @property
    def active(self) -> int:
        """Answers that are not done."""
        answers = [*self._running.answers, *(self._newcomers.answers if self._newcomers else ())]
        return sum(not answer.done and id(answer) not in self._unwanted for answer in answers)

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._newcomers or self._running.answers)

    def fitting(self, waiting: list[GeneratedSequence]) -> int:
        """How many of those that wait should join now, the first ones first: as many as there is room for, and as are
        read quickly together. Prompts of unlike lengths would be padded.
        """
        count = longest = 0
        for answer in waiting[: self.free]:
            longest = max(longest, min(len(answer.prompt), self._backend.max_prefill_tokens))
            if count and (count + 1) * longest > _TOKENS:
                break
            count += 1
        return count

    def join(self, answers: list[GeneratedSequence]) -> None:
        """Has them read by the next steps. There are at most `free`."""
        assert 0 < len(answers) <= self.free
        self._place = len(self._running.answers)
        cache = self._backend.rows(self._cache, self._place, len(answers))
        drafts = self._model.draft_tokens
        self._newcomers = Decoder(self._backend, answers, drafts, cache=cache)
        self._reading = self._newcomers.prefill()

    def leave(self, wanted: Callable[[GeneratedSequence], bool]) -> None:
        """Gives up the answers for which `wanted` is false; they stay undone."""
        if newcomers := self._newcomers:
            # Those that are read together are padded to one length: the others do not get faster by it.
            self._unwanted |= {id(answer) for answer in newcomers.answers if not wanted(answer)}
            if len(self._unwanted) == len(newcomers.answers):
                self._forget_newcomers()
        self._keep(wanted)

    def step(self) -> None:
        """One pass over a part of the newcomers' prompts, and one step of all others. What it raises leaves the batch
        empty.
        """
        try:
            if self._newcomers:
                self._read()
            if self._running.answers:
                for _ in self._running.step():
                    pass
                self._keep(lambda answer: not answer.done)
        except BaseException:
            self._new()
            raise

    def _new(self) -> None:
        self._cache = self._backend.new_cache(self.rows)
        self._running = Decoder(self._backend, [], self._model.draft_tokens, cache=self._cache)
        self._forget_newcomers()

    def _forget_newcomers(self) -> None:
        self._newcomers, self._reading, self._place = None, iter(()), 0
        self._unwanted = set()

    def _read(self) -> None:
        """The newcomers' next part. Those whose prompt has been read join the others."""
        assert self._newcomers
        next(self._reading)
        if not all(answer.tokens or answer.done for answer in self._newcomers.answers):
            return
        for _ in self._reading:  # there is nothing more to read
            pass
        newcomers, place, unwanted = self._newcomers, self._place, self._unwanted
        self._forget_newcomers()
        left = [row for row, each in enumerate(newcomers.answers) if not each.done and id(each) not in unwanted]
        if not left:
            return
        start = len(self._running.answers)
        for target, row in enumerate(left):
            self._move(place + row, start + target, int(newcomers.lengths[row]))
        newcomers.keep(left, None)
        self._running.join(newcomers, self._front(start + len(left)))

    def _keep(self, wanted: Callable[[GeneratedSequence], bool]) -> None:
        """The last rows take the places of those that leave."""
        running = self._running
        kept = [row for row, answer in enumerate(running.answers) if wanted(answer)]
        if len(kept) == len(running.answers):
            return
        holes = [row for row in range(len(kept)) if row not in set(kept)]
        order = list(range(len(kept)))
        for hole, row in zip(holes, kept[len(kept) - len(holes) :], strict=True):
            self._move(row, hole, int(running.lengths[row]))
            order[hole] = row
        running.keep(order, self._front(len(kept)))
        if not self._newcomers:
            self._backend.trim(self._cache, max(running.lengths.tolist(), default=0))

    def _front(self, rows: int) -> Any:
        return self._backend.rows(self._cache, 0, rows)

    def _move(self, row: int, target: int, length: int) -> None:
        if row != target:
            rows = self._backend.rows
            self._backend.copy(rows(self._cache, row, 1), [0], length, rows(self._cache, target, 1))
