"""The loop that makes tokens, for one sequence or a batch, with drafts of the MTP layer where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmc.runtime.backends import Backend, FloatArray, Graph, Hidden, IntArray, longer, step_width
from llmc.runtime.image_prompt import features_of_rows
from llmc.runtime.logprobs import most_scored, token_logprobs
from llmc.runtime.sampling import Probabilities
from llmc.runtime.sequence import GeneratedSequence

Cancelled = Callable[[], bool]


@dataclass
class KVCacheState:
    """A backend's cache of one sequence, and what it is known to hold.

    Attributes:
        tokens: those that the main graph has seen, at their places; an image's as `SeenImages.keys`
        mtp: entries of the MTP layer that were made from them; entry i depends on tokens i and i + 1
        long: whether they were rotated as a text longer than the original context is
    """

    cache: Any
    tokens: list[int] = field(default_factory=list)
    mtp: int = 0
    long: bool = False

    def shared(self, prompt: Sequence[int], drafting: bool, long: bool = False) -> int:
        """How many tokens of a prompt need not be computed again. The last one always is: its logits are wanted. With
        drafts so are those whose MTP entries are missing, since these are made from the main graph's hidden states.
        All are if the prompt is rotated otherwise.
        """
        if long != self.long:
            return 0
        pairs = zip(self.tokens, prompt, strict=False)
        same = next((place for place, (mine, other) in enumerate(pairs) if mine != other), None)
        same = min(len(self.tokens), len(prompt)) if same is None else same
        return max(0, min(same, len(prompt) - 1, *((same - 1, self.mtp) if drafting else ())))


class Decoder:
    """Continues answers, one a row. All begin with what `memory` holds, as far as their prompts agree with it, or in a
    cache that is given.

    Between steps row b has n[b] entries in the main cache and a next token that is chosen but not yet fed. With
    drafts, the MTP layer has seen that token and the hidden state of the one before; `_ahead` holds its logits [B, V]
    for the token after, and its own hidden states [B, 1, H], from which it drafts further, for the rows that are
    `_drafting`. One pass of the main model
    over the next token and the drafts tells which of them it would have chosen. What was refused is overwritten
    later, and so is what pads a shorter row.
    """

    def __init__(
        self,
        backend: Backend,
        answers: list[GeneratedSequence],
        draft_tokens: int,
        memory: KVCacheState | None = None,
        cache: Any = None,
    ) -> None:
        self.backend, self.answers = backend, answers
        self.draft_tokens = draft_tokens if backend.has_mtp else 0
        self._n = np.array([len(answer.prompt) for answer in answers], dtype=np.int64)
        self._long = longer(backend, self._n)
        long = [False] * len(answers) if self._long is None else self._long.tolist()
        drafting, pairs = self.draft_tokens > 0, zip(answers, long, strict=True)
        self._scored = [row for row, each in enumerate(answers) if each.parameters.prompt_logprobs is not None]
        known = [memory.shared(each.identity, drafting, beyond) for each, beyond in pairs] if memory else []
        self._start = 0 if self._scored else min(known, default=0)
        for answer in answers:
            answer.cached = self._start
        self._remembers = memory is not None and len(answers) == 1
        if memory and self._remembers:
            self._memory, self._cache = memory, memory.cache
        else:
            self._cache = backend.new_cache(len(answers)) if cache is None else cache
            self._memory = KVCacheState(self._cache)  # followed for one row only, of use to nobody
            if memory and self._start:
                backend.copy(memory.cache, [0] * len(answers), self._start, self._cache)
        self._next = np.zeros(len(answers), np.int64)
        self._ahead: tuple[FloatArray, Hidden] | None = None
        self._drafting = np.zeros(len(answers), np.bool_)

    def run(self, cancelled: Cancelled) -> Iterator[None]:
        """Yields whenever answers may have grown; ends when all are done, or between two passes when `cancelled`."""
        if cancelled():
            return
        for _ in self._passes():
            yield
            if cancelled():
                return

    def _passes(self) -> Iterator[None]:
        yield from self.prefill()
        while not all(answer.done for answer in self.answers):
            self._drop_done()
            yield from self.step()

    def step(self) -> Iterator[None]:
        """One token more for every row, or several; yields between passes, of which there is one as a rule."""
        yield from self._read_again_what_became_long()
        self._step()
        yield

    def prefill(self) -> Iterator[None]:
        """Feeds the prompts in parts, padded behind, and chooses every row's first token."""
        lengths = self._n
        longest = int(lengths.max())
        ids = np.zeros((len(self.answers), longest + 1), np.int64)
        for row, answer in enumerate(self.answers):
            ids[row, : len(answer.prompt)] = answer.prompt
        ahead: list[tuple[FloatArray, Hidden] | None] = [None] * len(self.answers)
        stop = self._start
        while stop < longest:
            start = stop
            width = step_width(self.backend, len(ids), start)
            stop = min(start + (min(width, self._most_scored()) if self._scored else width), longest)
            last = lengths - 1 - start
            index = last.clip(0, stop - start - 1)
            ending = [row for row in range(len(last)) if 0 <= last[row] < stop - start]
            positions = np.full(len(lengths), start)
            wanted = np.arange(stop - start)[None].repeat(len(ids), 0) if self._scored else index[:, None]
            logits, hidden = self._forward("main", ids[:, start:stop], positions, wanted)
            self._score(ids, start, logits)
            for row in ending:
                chosen_from = logits[row, index[row] if self._scored else 0]
                token = self.answers[row].choose(chosen_from)
                self.answers[row].take(token, chosen_from)
                self._next[row] = ids[row, lengths[row]] = token
            if self.draft_tokens and (self._remembers or any(answer.limit > 1 for answer in self.answers)):
                following = ids[:, start + 1 : stop + 1]
                logits, hidden = self._forward("mtp", following, positions, index[:, None], hidden)
                self._memory.mtp = stop
                assert hidden is not None
                for row in ending:
                    ahead[row] = logits[row, 0], hidden[row, index[row]]
            yield
        known = [each for each in ahead if each]
        if known and len(known) == len(ahead):
            self._ahead = np.stack([each[0] for each in known]), np.stack([each[1] for each in known])[:, None]
            self._drafting[:] = True

    def _score(self, ids: IntArray, start: int, logits: FloatArray) -> None:
        """What logits [B, S, V] behind the tokens from `start` on say of prompts whose tokens are to be scored."""
        for row in self._scored:
            answer = self.answers[row]
            count = min(logits.shape[1], len(answer.prompt) - 1 - start)
            if count > 0:
                tokens = ids[row, start + 1 : start + 1 + count]
                top = answer.parameters.prompt_logprobs or 0
                answer.prompt_logprobs += token_logprobs(logits[row, :count], tokens, top)

    def _most_scored(self) -> int:
        """Tokens of a row whose logits there is memory for."""
        return most_scored(max(self.answers[row].vocab_size for row in self._scored), len(self.answers))

    def _read_again_what_became_long(self) -> Iterator[None]:
        """All rows, whole, when the next token makes one longer than the original context: its keys are rotated as
        those of a short text. There are no drafts from then on.
        """
        if self._long is None:
            return
        now = longer(self.backend, self._n + np.array([not answer.done for answer in self.answers]))
        if now is None or not (now & ~self._long).any():
            return
        self._long, self._ahead, stop = now, None, 0
        self._drafting[:] = False
        longest = int(self._n.max())
        ids = np.zeros((len(self.answers), longest), np.int64)
        for row, answer in enumerate(self.answers):
            ids[row, : self._n[row]] = (answer.prompt + answer.tokens)[: self._n[row]]
        while stop < longest:
            start = stop
            stop = min(start + step_width(self.backend, len(ids), start), longest)
            zero = np.zeros((len(ids), 1), np.int64)
            self._forward("main", ids[:, start:stop], np.full(len(ids), start), zero)
            yield

    def _step(self) -> None:
        """One pass of the main model over every row's next token and its drafts."""
        active = [row for row, answer in enumerate(self.answers) if not answer.done]
        count = self._count(active)
        # A row that is done writes where there is room, since nobody will read it.
        positions = np.where([answer.done for answer in self.answers], 0, self._n)
        drafts, drafted = self._draft(active, count, positions)
        fed = np.zeros((len(self.answers), count + 1), np.int64)
        fed[:, 0] = self._next
        for row in active:
            fed[row, 1 : 1 + len(drafts[row])] = drafts[row]
        every = np.arange(count + 1)[None].repeat(len(fed), 0)
        logits, hidden = self._forward("main", fed, positions, every)
        following = np.zeros(fed.shape, np.int64)
        index = np.zeros(len(self.answers), np.int64)
        for row in active:
            answer = self.answers[row]
            chosen = answer.verify(drafts[row], drafted[row], logits[row, : len(drafts[row]) + 1])
            for place, token in enumerate(chosen):
                if not answer.done:
                    answer.take(token, logits[row, place])
            following[row, : len(chosen)] = chosen
            index[row] = len(chosen) - 1
            self._next[row] = chosen[-1]
            self._n[row] += len(chosen)
        if self._ahead and not all(answer.done for answer in self.answers):
            assert hidden is not None
            width = int(index.max()) + 1
            logits, hidden = self._forward("mtp", following[:, :width], positions, index[:, None], hidden[:, :width])
            self._memory.mtp = int(self._n[0])
            assert hidden is not None
            self._ahead = logits[:, 0], np.take_along_axis(hidden, index[:, None, None], 1)

    def _count(self, active: list[int]) -> int:
        """Drafts of the next step, as the row with most room for them can use. Where one row's context ends no row has
        any.
        """
        drafting = [row for row in active if self._drafting[row]]
        if self._ahead is None or not drafting:
            self._ahead = None
            return 0
        space = self.backend.context - 1 - int(self._n[active].max())
        if self._long is not None and (short := [row for row in active if not self._long[row]]):
            space = min(space, (self.backend.original_context or 0) - 1 - int(self._n[short].max()))
        return max(0, min(self.draft_tokens, space, max(self.answers[row].remaining for row in drafting) - 1))

    def _draft(
        self, active: list[int], count: int, positions: IntArray
    ) -> tuple[dict[int, list[int]], dict[int, list[Probabilities | None]]]:
        """Up to `count` drafts of every active row, and the distributions they were drawn from."""
        drafts: dict[int, list[int]] = {row: [] for row in active}
        drafted: dict[int, list[Probabilities | None]] = {row: [] for row in active}
        tokens = np.zeros((len(self.answers), 1), np.int64)
        if self._ahead is None:
            return drafts, drafted
        logits, hidden = self._ahead
        for place in range(count):
            if place:
                found, deeper = self._forward("mtp", tokens, positions + place - 1, np.zeros_like(tokens), hidden)
                assert deeper is not None
                logits, hidden = found[:, 0], deeper
            for row in active:
                if self._drafting[row] and place < self.answers[row].remaining - 1:
                    token, distribution = self.answers[row].draft(logits[row], drafts[row])
                    drafts[row].append(token)
                    drafted[row].append(distribution)
                    tokens[row] = token
        return drafts, drafted

    def _drop_done(self) -> None:
        """Goes on without the rows that are done, once they are half of the batch."""
        left = [row for row, answer in enumerate(self.answers) if not answer.done]
        if 2 * len(left) > len(self.answers):
            return
        smaller = self.backend.new_cache(len(left))
        self.backend.copy(self._cache, left, int(self._n[left].max()), smaller)
        self.keep(left, smaller)

    @property
    def lengths(self) -> IntArray:
        """[B], entries of each row's cache."""
        return self._n

    def keep(self, rows: list[int], cache: Any) -> None:
        """Goes on with these rows, in this order, which is theirs in `cache`."""
        self.answers, self._cache = [self.answers[row] for row in rows], cache
        self._n, self._next, self._drafting = self._n[rows], self._next[rows], self._drafting[rows]
        self._long = None if self._long is None else self._long[rows]
        if self._ahead:
            self._ahead = self._ahead[0][rows], self._ahead[1][rows]

    def join(self, other: Decoder, cache: Any) -> None:
        """Goes on with the rows of another decoder, too, behind its own in `cache`."""
        rows = len(self.answers), len(other.answers)
        self.answers, self._cache = [*self.answers, *other.answers], cache
        self._n, self._next = np.append(self._n, other._n), np.append(self._next, other._next)
        self._long = None if self._long is None or other._long is None else np.append(self._long, other._long)
        self._drafting = np.append(self._drafting, other._drafting)
        if some := self._ahead or other._ahead:
            parts = [
                each or _unknown(some, count) for each, count in zip((self._ahead, other._ahead), rows, strict=True)
            ]
            self._ahead = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _forward(
        self, graph: Graph, ids: IntArray, positions: IntArray, index: IntArray, hidden: Hidden | None = None
    ) -> tuple[FloatArray, Hidden | None]:
        """A pass of the backend; `_memory` never says more than the caches hold, even if it fails."""
        memory, first = self._memory, int(positions[0])
        if graph == "main":
            del memory.tokens[first:]
            memory.mtp = min(memory.mtp, max(first - 1, 0))
        if self._long is not None:
            memory.long = bool(self._long[0])
        seen = [None if answer.done or graph == "mtp" else answer.images for answer in self.answers]
        images = features_of_rows(seen, positions, ids.shape[1])
        result = self.backend.forward(graph, self._cache, ids, positions, index, hidden, self._long, images)
        if graph == "main":
            memory.tokens += seen[0].identify(ids[0].tolist(), first) if seen[0] else ids[0].tolist()
        return result


def _unknown(like: tuple[FloatArray, Hidden], rows: int) -> tuple[FloatArray, Hidden]:
    """What stands for logits and hidden states of rows that have none, and do not draft."""
    logits, hidden = like
    return np.zeros((rows, *logits.shape[1:]), logits.dtype), np.zeros((rows, *hidden.shape[1:]), hidden.dtype)
