"""The loops that make tokens: one sequence with drafts of the MTP layer, or a batch token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmc.runtime.backends import Backend, FloatArray, Graph, Hidden, IntArray
from llmc.runtime.sampling import Probabilities, Sampling, draw, verify

_NEVER = np.float32(-1e30)  # a logit of probability 0 that still is a number


@dataclass
class Request:
    """One prompt and what became of it. The first new token is one of `first_tokens`, if that is not None."""

    prompt: list[int]
    max_new_tokens: int
    generator: np.random.Generator
    first_tokens: IntArray | None = None
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False  # by an end-of-text token, which is not among `tokens`
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def done(self) -> bool:
        return self.stopped or len(self.tokens) >= self.max_new_tokens


class Decoder:
    """One batch on one cache; used once."""

    def __init__(
        self, backend: Backend, batch: int, sampling: Sampling, draft_tokens: int, eos_token_ids: frozenset[int]
    ) -> None:
        self.backend, self.sampling = backend, sampling
        self.draft_tokens, self.eos_token_ids = draft_tokens, eos_token_ids
        self.cache: Any = backend.new_cache(batch)

    def speculate(self, request: Request) -> Iterator[int]:
        """Tokens of one sequence as they become certain.

        The main model's cache holds tokens 0 … n-1 and token n is chosen but not yet fed. The MTP layer proposes
        tokens n+1 … n+k from the hidden state of n-1 and token n, then from its own; one pass of the main model over
        token n and the drafts tells which of them it would have chosen. What was refused is overwritten later.
        """
        n, width = len(request.prompt), self.backend.prefill
        for first in range(0, n, width):
            part = request.prompt[first : first + width]
            logits, hidden = self._forward("main", part, first, [len(part) - 1])
            following = request.prompt[first + 1 : first + width + 1]
            if first + width < n and self.draft_tokens:  # the MTP layer's cache goes along
                self._forward("mtp", following, first, [0], hidden)
        chosen = [self._first(request, logits[0])]
        # What the MTP layer has not seen: the tokens that follow `first`, `first` + 1, … and their hidden states.
        following.append(chosen[0])
        while True:
            for token in chosen:
                self._take(request, token)
                if request.stopped:
                    return
                yield token
                if request.done:
                    return
            room = min(self.backend.context - n, request.max_new_tokens - len(request.tokens)) - 1
            drafts, drafted = self._draft(following, first, hidden, min(self.draft_tokens, room), request.generator)
            fed = [chosen[-1], *drafts]
            logits, hidden = self._forward("main", fed, n, range(len(fed)))
            wanted = [self.sampling.distribution(row) for row in logits]
            chosen = verify(drafts, drafted, wanted, request.generator)
            request.steps += 1
            request.drafted += len(drafts)
            request.accepted += len(chosen) - 1
            following, first = chosen, n
            hidden = None if hidden is None else hidden[:, : len(chosen)]
            n += len(chosen)

    def _draft(
        self, following: list[int], first: int, hidden: Hidden | None, count: int, generator: np.random.Generator
    ) -> tuple[list[int], list[Probabilities]]:
        """`count` drafts and the distributions that they were drawn from. Once count is 0 it stays so: the sequence
        is about to end, and the MTP layer's cache need not go along."""
        drafts: list[int] = []
        drafted: list[Probabilities] = []
        for _ in range(count):
            logits, hidden = self._forward("mtp", following, first, [len(following) - 1], hidden)
            assert hidden is not None
            drafted.append(self.sampling.distribution(logits[0]))
            drafts.append(draw(drafted[-1], generator))
            first += len(following)
            following, hidden = drafts[-1:], hidden[:, -1:]
        return drafts, drafted

    def _forward(
        self, graph: Graph, tokens: list[int], position: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> tuple[FloatArray, Hidden | None]:
        """One row: logits [L, V] of the `wanted` of these tokens, hidden states [1, S, H] of all."""
        ids, index = (np.array([numbers], dtype=np.int64) for numbers in (tokens, wanted))
        logits, hidden = self.backend.forward(graph, self.cache, ids, np.array([position]), index, hidden)
        return logits[0], hidden

    def batch(self, requests: list[Request]) -> None:
        """Several sequences, one token each a step. Shorter prompts are padded behind; what a pad writes into the
        cache is never seen and later overwritten."""
        lengths = np.array([len(request.prompt) for request in requests], dtype=np.int64)
        longest, width = int(lengths.max()), self.backend.prefill
        ids = np.zeros((len(requests), longest), np.int64)
        for row, request in enumerate(requests):
            ids[row, : len(request.prompt)] = request.prompt
        for start in range(0, longest, width):
            part = ids[:, start : start + width]
            last = lengths - 1 - start
            index = last.clip(0, part.shape[1] - 1)[:, None]
            logits, _ = self.backend.forward("main", self.cache, part, np.full(len(requests), start), index)
            for row, request in enumerate(requests):
                if 0 <= last[row] < width:
                    self._take(request, self._first(request, logits[row, 0]))
        position, index = lengths.copy(), np.zeros((len(requests), 1), np.int64)
        while not all(request.done for request in requests):
            fed = np.array([[request.tokens[-1] if request.tokens else 0] for request in requests], dtype=np.int64)
            logits, _ = self.backend.forward("main", self.cache, fed, position, index)
            for row, request in enumerate(requests):
                if not request.done:
                    request.steps += 1
                    self._take(request, draw(self.sampling.distribution(logits[row, 0]), request.generator))
                    position[row] += not request.done  # a finished row writes over its last entry

    def _first(self, request: Request, logits: FloatArray) -> int:
        """The token after the prompt, from logits [V]."""
        if request.first_tokens is not None:
            allowed = np.full_like(logits, _NEVER)
            allowed[request.first_tokens] = logits[request.first_tokens]
            logits = allowed
        return draw(self.sampling.distribution(logits), request.generator)

    def _take(self, request: Request, token: int) -> None:
        if token in self.eos_token_ids:
            request.stopped = True
        else:
            request.tokens.append(token)
