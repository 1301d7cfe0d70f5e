"""What all requests of one server share: the model, its name, the scheduler."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from llmc import __version__
from llmc.errors import InputError
from llmc.runtime.model import Model
from llmc.runtime.running_batch import RunningBatch
from llmc.runtime.sequence import GeneratedSequence
from llmc.runtime.token_bytes import TokenBytes
from llmc.serve.metrics import Metrics
from llmc.serve.refusal import Refusal, of_input
from llmc.serve.scheduler import Scheduler, Ticket


class Service:
    """One model that is served.

    Attributes:
        name: What clients call the model.
        created: When it was loaded, in seconds since 1970.
        fingerprint: Changes with whatever could change answers to the same seed.
    """

    def __init__(self, model: Model, name: str, created: int, queue: int = 256, rows: int | None = None) -> None:
        """The most answers that wait, and the most that are made at once; None: what the backend takes."""
        self.model, self.name, self.created = model, name, created
        self.batch, self.metrics = RunningBatch(model, rows), Metrics()
        self.scheduler = Scheduler(self.batch, queue, self.metrics)
        self.token_bytes = TokenBytes(model.tokenizer)
        manifest = (model.artifact.path / "llmc.json").read_bytes()
        told = f"{__version__} {model.backend_info} {model.draft_tokens} {self.batch.rows}".encode()
        self.fingerprint = f"llmc-{hashlib.sha256(manifest + told).hexdigest()[:12]}"

    def require(self, name: str | None) -> None:
        """Refusal for another model than this one."""
        if name not in (None, self.name):
            raise Refusal(404, f"no model {name!r} is served here, only {self.name!r}", "model", "model_not_found")

    async def ticket(self, begin: Callable[[], list[GeneratedSequence]]) -> Ticket:
        """The answers that `begin`, in a thread, makes of a request, in the queue."""
        try:
            answers = await asyncio.to_thread(begin)
        except InputError as error:
            raise of_input(error) from error
        ticket = Ticket(answers, asyncio.get_running_loop())
        self.scheduler.submit(ticket)
        return ticket
