"""One prompt and what becomes of it: which tokens are chosen, the text they make, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llmc.runtime.backends import FloatArray, IntArray
from llmc.runtime.detokenizer import Detokenizer
from llmc.runtime.image_prompt import SeenImages
from llmc.runtime.logprobs import TokenLogprob, token_logprobs
from llmc.runtime.sampling import Probabilities, SamplingParams, draw, verify, verify_greedy
from llmc.runtime.tokenizer import Tokenizer

_LARGE_VOCABULARY = 1 << 18
_NEVER = np.float32(-1e30)  # a logit of probability 0 that still is a number


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        finish_reason: an end-of-text token or a stop string; the length asked for; or somebody cancelled it
        token_ids: without the end-of-text token; those that make up a stop string are there, although `text` lacks it
        cached_tokens: of the prompt, which a session had in its cache already
        steps: passes of the main model after the prompt; with speculation there are fewer than tokens
        drafted, accepted: tokens that the MTP layer proposed, and those of them that the model agreed to
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    cached_tokens: int
    steps: int
    drafted: int
    accepted: int
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass
class GeneratedSequence:
    """first_tokens: the first new token is one of these, if that is not None; the prompt's text then ends in the
    space that they begin with. limit: the most new tokens. vocab_size: of the logits.
    """

    prompt: list[int]
    parameters: SamplingParams
    limit: int
    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]
    first_tokens: IntArray | None = None
    images: SeenImages | None = None
    vocab_size: int = _LARGE_VOCABULARY
    tokens: list[int] = field(default_factory=list)
    text: str = ""  # what is certain of it
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.parameters.seed)
        self._detokenizer = Detokenizer(self.tokenizer, self.prompt)
        self._healed = self.first_tokens is not None  # the prompt has the space already that the answer begins with
        self._pending = ""  # the beginning of a stop string, perhaps

    @property
    def identity(self) -> list[int]:
        """The prompt, with tokens of images told from those of other images."""
        return self.images.identify(list(self.prompt), 0) if self.images else self.prompt

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def remaining(self) -> int:
        """New tokens that may still come."""
        return self.limit - len(self.tokens)

    def choose(self, logits: FloatArray) -> int:
        """The token after the prompt, from logits [V]."""
        if self.first_tokens is not None:
            allowed = np.full_like(logits, _NEVER)
            allowed[self.first_tokens] = logits[self.first_tokens]
            logits = allowed
        token, _ = self.draft(logits, [])
        return token

    def draft(self, logits: FloatArray, drafts: list[int]) -> tuple[int, Probabilities | None]:
        """A token after `drafts`, from logits [V], and the distribution it was drawn from, unless that is greedy."""
        seen = self._seen(drafts)
        if self.parameters.greedy:
            return int(self.parameters.penalized(logits, seen).argmax()), None
        distribution = self.parameters.distribution(logits, seen)
        return draw(distribution, self._generator), distribution

    def verify(self, drafts: list[int], drafted: Sequence[Probabilities | None], logits: FloatArray) -> list[int]:
        """The next tokens, one to len(drafts) + 1, from the model's logits [len(drafts) + 1, V] behind each."""
        self.steps += 1
        self.drafted += len(drafts)
        rows = [(row, self._seen(drafts[:place])) for place, row in enumerate(logits)]
        if self.parameters.greedy:
            wanted = [int(self.parameters.penalized(row, seen).argmax()) for row, seen in rows]
            chosen = verify_greedy(drafts, wanted)
        else:
            distributions = [self.parameters.distribution(row, seen) for row, seen in rows]
            chosen = verify(drafts, [p for p in drafted if p is not None], distributions, self._generator)
        self.accepted += len(chosen) - 1
        return chosen

    def take(self, token: int, logits: FloatArray) -> None:
        """Makes a chosen token part of the answer, unless it ends it. logits [V]: those it was chosen from."""
        if token in self.eos_token_ids:
            self._end("stop")
            return
        self.tokens.append(token)
        if self.parameters.logprobs is not None:
            self.logprobs += token_logprobs(logits[None], np.array([token]), self.parameters.logprobs)
        self._append(self._detokenizer.push(token))
        if not self.done and not self.remaining:
            self._end("length")

    def generation(self) -> Generation:
        """What there is of it. An answer that is not done counts as cancelled."""
        return Generation(
            text=self.text if self.done else self.text + self._pending,
            token_ids=list(self.tokens),
            finish_reason=self.finish_reason or "cancelled",
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached,
            steps=self.steps,
            drafted=self.drafted,
            accepted=self.accepted,
            logprobs=None if self.parameters.logprobs is None else list(self.logprobs),
            prompt_logprobs=None if self.parameters.prompt_logprobs is None else list(self.prompt_logprobs),
        )

    def _seen(self, drafts: list[int]) -> list[int]:
        if self.parameters.repetition_penalty == 1:
            return []
        return [*self.prompt, *self.tokens, *drafts]

    def _append(self, piece: str) -> None:
        """Adds certain text; what may become a stop string is held back until it is known."""
        if piece and self._healed:
            piece, self._healed = piece.removeprefix(" "), False
        self._pending += piece
        found = [place for stop in self.parameters.stop if (place := self._pending.find(stop)) >= 0]
        if found:
            self._pending = self._pending[: min(found)]
            self._end("stop", flush=False)
            return
        held = max((_overlap(self._pending, stop) for stop in self.parameters.stop), default=0)
        certain = len(self._pending) - held
        self.text += self._pending[:certain]
        self._pending = self._pending[certain:]

    def _end(self, reason: Literal["stop", "length"], flush: bool = True) -> None:
        if flush:
            self._append(self._detokenizer.rest())
        if not self.done:
            self.text += self._pending
            self._pending = ""
            self.finish_reason = reason


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
