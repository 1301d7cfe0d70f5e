"""How answers go back: whole, or as a stream of events. A client that hangs up frees its rows."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llmc.serve.chat import Chat
from llmc.serve.completions import Completion
from llmc.serve.refusal import Refusal
from llmc.serve.scheduler import Scheduler, Ticket
from llmc.serve.service import Service

_HUNG_UP = 499  # as nginx counts it; nobody reads it
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies are not to collect events


async def reply(service: Service, request: Request, completion: Completion | Chat) -> Response:
    """The response to one request; Refusal when there is none."""
    ticket = await service.ticket(completion.answers)
    if completion.asked.stream:
        return _Events(_events(completion, ticket), service.scheduler, ticket)
    work = asyncio.ensure_future(_whole(completion, ticket))
    watch = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(work.result()) if work.done() else Response(status_code=_HUNG_UP)
    finally:
        for task in (work, watch):
            task.cancel()
        service.scheduler.cancel(ticket)


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(completion: Completion | Chat, ticket: Ticket) -> dict[str, Any]:
    choices: list[list[dict[str, Any]]] = [[] for _ in ticket.answers]
    tokens = [0] * len(ticket.answers)
    async for piece in ticket.pieces():
        said = choices[piece.index]
        if not said and (first := completion.first(piece.index, ticket.answers[piece.index])):
            said.append(first)
        said.append(completion.choice(piece))
        tokens[piece.index] = piece.tokens
    usage = completion.usage(ticket.answers, tokens)
    return completion.body([completion.joined(said) for said in choices], usage)


async def _events(completion: Completion | Chat, ticket: Ticket) -> AsyncIterator[bytes]:
    """Server-sent events, one or several a step. What goes wrong on the way is the last of them."""
    begun, tokens = set[int](), [0] * len(ticket.answers)
    options = completion.asked.stream_options
    try:
        async for piece in ticket.pieces():
            if piece.index not in begun:
                begun.add(piece.index)
                if first := completion.first(piece.index, ticket.answers[piece.index]):
                    yield _event(completion.chunk([first], None))
            tokens[piece.index] = piece.tokens
            if piece.text or piece.logprobs or piece.finish_reason:
                yield _event(completion.chunk([completion.choice(piece)], None))
        if options and options.include_usage:
            yield _event(completion.chunk([], completion.usage(ticket.answers, tokens)))
    except Refusal as refusal:
        yield _event(refusal.body())
    yield b"data: [DONE]\n\n"


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class _Events(StreamingResponse):
    """A stream whose rows are freed however it ends, also before it begins."""

    def __init__(self, events: AsyncIterator[bytes], scheduler: Scheduler, ticket: Ticket) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._scheduler, self._ticket = scheduler, ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(OSError):  # of a client that is gone
                await super().__call__(scope, receive, send)
        finally:
            self._scheduler.cancel(self._ticket)
