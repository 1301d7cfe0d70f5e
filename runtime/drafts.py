"""How many drafts of a multi-token-prediction layer the model agrees to, when it goes on with beginnings of a text."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmc.runtime.backends import IntArray
from llmc.runtime.decoding import Decoder
from llmc.runtime.sampling import SamplingParams
from llmc.runtime.sequence import GeneratedSequence

if TYPE_CHECKING:
    from llmc.runtime.model import Model

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 8, 32, 32


@dataclass
class Run:
    """Answers of one batch, and the seconds that prompts and steps took."""

    answers: list[GeneratedSequence]
    prefill: float = 0.0
    decode: float = 0.0


def beginnings(ids: IntArray, context: int) -> tuple[list[list[int]], int]:
    """Of some windows [N, L] of a check text, and how many tokens to go on with."""
    length = min(_PROMPT_TOKENS, context // 2)
    return ids[:_PROMPTS, :length].tolist(), min(_NEW_TOKENS, context - length)


def run(model: Model, prompts: list[list[int]], new_tokens: int, draft_tokens: int) -> Run:
    """Generates exactly so many tokens greedily; end-of-text tokens end nothing."""
    parameters = SamplingParams(max_new_tokens=new_tokens)
    answers = [GeneratedSequence(prompt, parameters, new_tokens, model.tokenizer, frozenset()) for prompt in prompts]
    timed = Run(answers)
    start = time.perf_counter()
    for _ in Decoder(model.backend, answers, draft_tokens).run(lambda: False):
        now = time.perf_counter()
        if any(answer.steps for answer in answers):
            timed.decode += now - start
        else:
            timed.prefill += now - start
        start = now
    return timed


@dataclass(frozen=True)
class Drafts:
    """How many there were, and how many of them the model agreed to."""

    accepted: int
    drafted: int

    @property
    def share(self) -> float | None:
        """None where there were none."""
        return self.accepted / self.drafted if self.drafted else None


def drafts(runs: list[Run]) -> Drafts:
    """Of all answers."""
    answers = [answer for run in runs for answer in run.answers]
    return Drafts(sum(answer.accepted for answer in answers), sum(answer.drafted for answer in answers))


def continued(model: Model, ids: IntArray) -> Drafts:
    """The drafts with which the beginnings of a check text's windows are continued, one by one."""
    prompts, new_tokens = beginnings(ids, model.context)
    return drafts([run(model, [prompt], new_tokens, model.draft_tokens) for prompt in prompts])


def acceptance(runs: list[Run]) -> float | None:
    """Share of drafts that the model agreed to; None where there were none."""
    return drafts(runs).share
