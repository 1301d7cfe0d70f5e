"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # a second line for every number


class Metrics:
    """Of one server; another in the same process counts for itself."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "llmc_requests", "Requests that were answered, by path and status", ["path", "status"], registry=registry
        )
        self.answers = Counter(
            "llmc_answers", "Answers that ended: stop, length, cancelled or error", ["reason"], registry=registry
        )
        self.prompt_tokens = Counter("llmc_prompt_tokens", "Tokens of prompts that were read", registry=registry)
        self.new_tokens = Counter("llmc_generated_tokens", "Tokens that were generated", registry=registry)
        self.drafted = Counter("llmc_draft_tokens", "Tokens that the MTP layer proposed", registry=registry)
        self.accepted = Counter("llmc_accepted_draft_tokens", "Those the model agreed to", registry=registry)
        self.first_token = Histogram(
            "llmc_time_to_first_token_seconds",
            "From a request's arrival to an answer's first token",
            registry=registry,
            buckets=_SECONDS,
        )
        self.waited = Histogram(
            "llmc_queue_seconds", "How long answers waited for a row", registry=registry, buckets=_SECONDS
        )
        self.answered = Histogram(
            "llmc_answer_seconds", "From a request's arrival to an answer's end", registry=registry, buckets=_SECONDS
        )
        self.step = Histogram(
            "llmc_step_seconds", "One step of all rows, prompts included", registry=registry, buckets=_SECONDS
        )

    def watch(self, running: Callable[[], int], waiting: Callable[[], int], rows: int) -> None:
        """Has the present numbers asked for whenever somebody looks."""
        gauge = Gauge("llmc_running_answers", "Answers in the running batch", registry=self._registry)
        gauge.set_function(running)
        gauge = Gauge("llmc_waiting_answers", "Answers that wait for a row", registry=self._registry)
        gauge.set_function(waiting)
        Gauge("llmc_rows", "The most answers at once", registry=self._registry).set(rows)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
