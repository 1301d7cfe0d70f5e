"""/v1/completions: texts or tokens that are continued, with the log-probabilities of what is said and was given."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from llmc.runtime.logprobs import TokenLogprob
from llmc.runtime.sequence import GeneratedSequence
from llmc.runtime.token_bytes import shown
from llmc.serve.protocol import CompletionRequest
from llmc.serve.refusal import Refusal
from llmc.serve.scheduler import Piece
from llmc.serve.service import Service


class Completion:
    """One request, and what its answers look like."""

    def __init__(self, service: Service, asked: CompletionRequest) -> None:
        service.require(asked.model)
        self.asked, self._service = asked, service
        given: Any = asked.prompt
        self._prompts: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        if not self._prompts:
            raise Refusal(400, "prompt is an empty list; give a text or some tokens", "prompt")
        self._silent = asked.max_tokens == 0  # the prompt alone is wanted
        self._scored = asked.echo and asked.logprobs is not None
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
        self._head |= {"model": service.name, "system_fingerprint": service.fingerprint}
        self._offsets: dict[int, int] = {}

    def answers(self) -> list[GeneratedSequence]:
        """The answers, which have not begun. InputError for what cannot be answered."""
        model, asked = self._service.model, self.asked
        options = asked.sampling()
        seed, count = options.pop("seed"), len(self._prompts) * asked.n
        if count > self._service.scheduler.most:
            raise Refusal(400, f"{count} answers in one request; this server takes {self._service.scheduler.most}")
        most = 1 if self._silent else asked.max_tokens
        scores = asked.logprobs if self._scored else None
        options |= {"max_new_tokens": most, "logprobs": asked.logprobs, "prompt_logprobs": scores}
        parameters = model.defaults.changed(options)
        found: list[GeneratedSequence] = []
        for prompt in self._prompts:
            # A text whose last space is taken back has fewer tokens than what is to be scored.
            text = model.encode(prompt) if self._scored else prompt
            for _ in range(asked.n):
                drawn = {"seed": None if seed is None else (seed + len(found)) % 2**64}
                found.append(self._service.batch.answer(text, parameters.changed(drawn)))
        return found

    def first(self, index: int, answer: GeneratedSequence) -> dict[str, Any] | None:
        """What an answer begins with: the prompt, if that is to be said, too."""
        prompt = self._prompts[index // self.asked.n]
        decode = self._service.model.tokenizer.decode
        text = prompt if isinstance(prompt, str) else decode(prompt, skip_special_tokens=False)  # given back whole
        if not self.asked.echo:
            self._offsets[index] = len(text)
            return None
        logprobs = None
        if self._scored:
            self._offsets[index] = 0
            logprobs = self._logprobs(index, [None, *answer.prompt_logprobs], answer.prompt[0])
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def choice(self, piece: Piece) -> dict[str, Any]:
        """What is new of an answer."""
        index, logprobs = piece.index, None
        if self.asked.logprobs is not None:
            logprobs = self._logprobs(index, [] if self._silent else piece.logprobs)
        text, reason = "" if self._silent else piece.text, "length" if self._silent else piece.finish_reason
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason if piece.finish_reason else None,
        }

    @staticmethod
    def joined(choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """An answer, of all that was said of it."""
        found = dict(choices[-1])
        found["text"] = "".join(choice["text"] for choice in choices)
        if any(parts := [choice["logprobs"] for choice in choices if choice["logprobs"]]):
            found["logprobs"] = {name: [each for part in parts for each in part[name]] for name in parts[0]}
        return found

    def chunk(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        """One event of a stream."""
        return self._head | {"choices": list(choices), "usage": usage}

    def body(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The whole response."""
        return self._head | {"choices": list(choices), "usage": usage}

    def usage(self, answers: Sequence[GeneratedSequence], tokens: Sequence[int]) -> dict[str, int]:
        """Tokens of prompts, each of which counts once, and of answers."""
        prompts = sum(len(answer.prompt) for answer in answers[:: self.asked.n])
        new = 0 if self._silent else sum(tokens)
        return {"prompt_tokens": prompts, "completion_tokens": new, "total_tokens": prompts + new}

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob | None], first: int = -1) -> dict[str, Any]:
        """In the older form. None stands for the first token of a text, which nothing tells."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            token = self._shown(first if entry is None else entry.token_id)
            tops: dict[str, float] | None = None
            if entry is not None:
                tops = {}
                for other, value in [*entry.top.items(), (entry.token_id, entry.logprob)]:
                    tops.setdefault(self._shown(other), value)
            found["tokens"].append(token)
            found["token_logprobs"].append(None if entry is None else entry.logprob)
            found["top_logprobs"].append(tops)
            found["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(token)
        return found

    def _shown(self, token: int) -> str:
        return shown(self._service.token_bytes(token))
