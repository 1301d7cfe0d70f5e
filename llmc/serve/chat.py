"""/v1/chat/completions: a conversation, through the model's own chat template."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from llmc.runtime.logprobs import TokenLogprob
from llmc.runtime.sequence import GeneratedSequence
from llmc.runtime.token_bytes import shown
from llmc.serve.protocol import ChatRequest
from llmc.serve.refusal import Refusal
from llmc.serve.scheduler import Piece
from llmc.serve.service import Service

_VARIABLES = ("tools", "reasoning_effort")  # of templates, in fields of their own


class Chat:
    """One request, and what its answers look like."""

    def __init__(self, service: Service, asked: ChatRequest) -> None:
        service.require(asked.model)
        self.asked, self._service = asked, service
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        self._head |= {"model": service.name, "system_fingerprint": service.fingerprint}

    def answers(self) -> list[GeneratedSequence]:
        """The answers, which have not begun. InputError for what cannot be answered."""
        model, asked = self._service.model, self.asked
        template, variables = model.template, asked.template()
        for name in _VARIABLES:
            if name in variables and not template.mentions(name):
                raise Refusal(400, f"this model's chat template knows no {name}; leave it out", name)
        begins = asked.add_generation_prompt and not asked.continue_final_message
        go_on = {"continue_final_message": True} if asked.continue_final_message else {}
        if clash := {"messages", "add_generation_prompt", "continue_final_message"} & variables.keys():
            raise Refusal(400, f"{min(clash)} is a parameter of its own", "chat_template_kwargs")
        prompt = model.chat_prompt([message.plain() for message in asked.messages], begins, **go_on, **variables)
        options = asked.sampling()
        seed = options.pop("seed")
        scores = (asked.top_logprobs or 0) if asked.logprobs else None
        parameters = model.defaults.changed(options | {"max_new_tokens": asked.most_tokens, "logprobs": scores})
        seeds = [None if seed is None else (seed + place) % 2**64 for place in range(asked.n)]
        return [self._service.batch.answer(prompt, parameters.changed({"seed": each})) for each in seeds]

    def first(self, index: int, answer: GeneratedSequence) -> dict[str, Any] | None:
        """What an answer begins with: its role."""
        return self._choice(index, {"role": "assistant", "content": ""}, None, None)

    def choice(self, piece: Piece) -> dict[str, Any]:
        """What is new of an answer."""
        logprobs = [self._logprob(each) for each in piece.logprobs] if self.asked.logprobs else None
        delta = {"content": piece.text} if piece.text else {}
        return self._choice(piece.index, delta, logprobs, piece.finish_reason)

    @staticmethod
    def joined(choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """An answer, of all that was said of it."""
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        parts = [choice["logprobs"]["content"] for choice in choices if choice["logprobs"]]
        return {
            "index": choices[0]["index"],
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": {"content": [each for part in parts for each in part], "refusal": None} if parts else None,
            "finish_reason": choices[-1]["finish_reason"],
        }

    def chunk(self, choices: Sequence[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        """One event of a stream."""
        return self._head | {"object": "chat.completion.chunk", "choices": list(choices), "usage": usage}

    def body(self, choices: Sequence[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The whole response."""
        return self._head | {"object": "chat.completion", "choices": list(choices), "usage": usage}

    def usage(self, answers: Sequence[GeneratedSequence], tokens: Sequence[int]) -> dict[str, int]:
        """Tokens of the prompt, which counts once, and of all answers."""
        prompt, new = len(answers[0].prompt), sum(tokens)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    @staticmethod
    def _choice(
        index: int, delta: dict[str, Any], logprobs: list[dict[str, Any]] | None, reason: str | None
    ) -> dict[str, Any]:
        told = None if logprobs is None else {"content": logprobs, "refusal": None}
        return {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        tops = [self._token(token, value) for token, value in entry.top.items()]
        return self._token(entry.token_id, entry.logprob) | {"top_logprobs": tops}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._service.token_bytes(token)
        return {"token": shown(data), "logprob": logprob, "bytes": list(data)}
