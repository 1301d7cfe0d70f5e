"""The loops that make tokens: one sequence with drafts of the MTP layer, or a batch token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmc.runtime.backends import Backend, FloatArray, IntArray
from llmc.runtime.sampling import Probabilities, Sampling, draw, verify

PREFILL = 256  # prompt tokens per pass


@dataclass
class Request:
    """One prompt and what became of it."""

    prompt: list[int]
    max_new_tokens: int
    generator: np.random.Generator
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
        ids = _row(request.prompt)
        logits, hidden = self._prefill(ids, want_hidden=self.draft_tokens > 0)
        chosen = [draw(self.sampling.distribution(logits), request.generator)]
        n = len(request.prompt)
        # Pairs (token i + 1, hidden i) that the MTP layer has not seen, and i of the first of them.
        following, behind, first = np.append(ids[:, 1:], [[chosen[0]]], axis=1), hidden, 0
        while True:
            for token in chosen:
                if token in self.eos_token_ids:
                    request.stopped = True
                    return
                request.tokens.append(token)
                yield token
                if request.done:
                    return
            room = min(self.backend.context - n - 1, request.max_new_tokens - len(request.tokens) - 1)
            count = min(self.draft_tokens, room)
            drafts, drafted = self._draft(following, behind, first, count, request)
            fed = _row([request.tokens[-1], *drafts])
            every = np.arange(fed.shape[1], dtype=np.int64)[None]
            logits, hidden = self.backend.forward("main", self.cache, fed, _row([n])[0], every)
            wanted = [self.sampling.distribution(row) for row in logits[0]]
            chosen = verify(drafts, drafted, wanted, request.generator)
            request.steps += 1
            request.drafted += len(drafts)
            request.accepted += len(chosen) - 1
            following = _row(chosen)
            behind, first = (None if hidden is None else hidden[:, : len(chosen)]), n
            n += len(chosen)

    def _draft(
        self, following: IntArray, behind: FloatArray | None, first: int, count: int, request: Request
    ) -> tuple[list[int], list[Probabilities]]:
        """Up to `count` drafts and their distributions; catches the MTP layer's cache up even when count is 0."""
        drafts: list[int] = []
        drafted: list[Probabilities] = []
        if behind is None or not self.draft_tokens:
            return drafts, drafted
        position = first
        for _ in range(max(1, count)):
            for start in range(0, following.shape[1], PREFILL):
                part = slice(start, start + PREFILL)
                tokens = following[:, part]
                last = _row([tokens.shape[1] - 1])
                logits, hidden = self.backend.forward(
                    "mtp", self.cache, tokens, _row([position])[0], last, behind[:, part]
                )
                position += tokens.shape[1]
            if len(drafts) == count:
                break
            probability = self.sampling.distribution(logits[0, 0])
            drafts.append(draw(probability, request.generator))
            drafted.append(probability)
            assert hidden is not None
            following, behind = _row([drafts[-1]]), hidden[:, -1:]
        return drafts, drafted

    def _prefill(self, ids: IntArray, want_hidden: bool) -> tuple[FloatArray, FloatArray | None]:
        """One prompt [1, n] → the logits [V] after its last token, and all hidden states [1, n, H]."""
        states = []
        for start in range(0, ids.shape[1], PREFILL):
            part = ids[:, start : start + PREFILL]
            last = _row([part.shape[1] - 1])
            logits, hidden = self.backend.forward("main", self.cache, part, _row([start])[0], last)
            if want_hidden and hidden is not None:
                states.append(hidden)
        return logits[0, 0], np.concatenate(states, axis=1) if states else None

    def batch(self, requests: list[Request]) -> None:
        """Several sequences, one token each a step. Shorter prompts are padded behind; what a pad writes into the
        cache is never seen and later overwritten."""
        lengths = np.array([len(request.prompt) for request in requests], dtype=np.int64)
        longest = int(lengths.max())
        ids = np.zeros((len(requests), longest), np.int64)
        for row, request in enumerate(requests):
            ids[row, : len(request.prompt)] = request.prompt
        for start in range(0, longest, PREFILL):
            part = ids[:, start : start + PREFILL]
            index = (lengths - 1 - start).clip(0, part.shape[1] - 1)[:, None]
            logits, _ = self.backend.forward("main", self.cache, part, np.full(len(requests), start), index)
            for row in np.flatnonzero((lengths - 1) // PREFILL == start // PREFILL).tolist():
                self._choose(requests[row], logits[row, 0])
        position = lengths.copy()
        zero = np.zeros((len(requests), 1), np.int64)
        while not all(request.done for request in requests):
            fed = np.array([[request.tokens[-1] if request.tokens else 0] for request in requests], dtype=np.int64)
            logits, _ = self.backend.forward("main", self.cache, fed, position, zero)
            for row, request in enumerate(requests):
                if not request.done:
                    request.steps += 1
                    self._choose(request, logits[row, 0])
                    position[row] += not request.done  # a finished row writes over its last entry

    def _choose(self, request: Request, logits: FloatArray) -> None:
        token = draw(self.sampling.distribution(logits), request.generator)
        if token in self.eos_token_ids:
            request.stopped = True
        else:
            request.tokens.append(token)


def _row(values: list[int]) -> IntArray:
    """[1, n] int64."""
    return np.array([values], dtype=np.int64)
