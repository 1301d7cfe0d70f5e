"""audit.json: what two models' answers to the same questions say about their difference; no artifact has it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmc.contracts.part import Count, Number, Part

FORMAT_VERSION = 1
Better = Literal["higher", "lower", "neither"]


class AuditedModel(Part):
    """One of the two models that were asked."""

    name: str = Field(description="its folder's own name, or its id")
    digest: str = Field(description="hash of what it is made of")
    runs_on: str = Field(description="what computed its answers")
    changed: bool = Field(default=False, description="whether it was pruned or quantized")


class MeasureRecord(Part):
    """One measure of a task, of both models over the same samples; the difference is the artifact's less the
    original's.
    """

    samples: Count = Field(description="that both models have a value of")
    kind: Literal["share", "mean", "calibration error"] = Field(description="what is made of the samples' values")
    better: Better = Field(description="which direction is the better one")
    original: Number = Field(description="the original's")
    artifact: Number = Field(description="the artifact's")
    difference: Number = Field(description="artifact − original")
    low: Number = Field(description="lower end of the difference's two-sided interval")
    high: Number = Field(description="upper end")
    confidence: Annotated[int, Field(ge=1, lt=100)] = Field(description="of the interval, in percent")
    method: Literal["score", "bootstrap"] = Field(description="score: Tango's interval for paired shares")
    bootstrap: list[Number] = Field(description="both ends of the bootstrap's percentile interval")
    gained: Count = Field(description="samples whose value is higher with the artifact; of shares, flips upwards")
    lost: Count = Field(description="samples whose value is lower with the artifact; of shares, flips downwards")
    p: Number | None = Field(
        default=None,
        description="exact two-sided p-value of gained against lost (of groups, where samples come in groups); of "
        "shares McNemar's test",
    )
    groups: Count | None = Field(
        default=None, description="of samples that belong together, as those of one template; absent: each is alone"
    )
    groups_gained: Count | None = Field(default=None, description="groups whose sum is higher with the artifact")
    groups_lost: Count | None = Field(default=None, description="groups whose sum is lower with the artifact")


class TaskRecord(Part):
    """A task, and what was measured on it."""

    suite: str | None = Field(default=None, description="the suite that it belongs to")
    data: str = Field(description="where its samples come from")
    documents: str = Field(description="sha256 of prompts and targets")
    samples: Count = Field(description="that both models answered")
    skipped: list[str] = Field(default=[], description="measures of the harness that are no numbers of samples")
    measures: dict[str, MeasureRecord] = Field(description="by name")


class ReviewRecord(Part):
    """What people said of answers that differ, blind: they did not know whose is whose."""

    sheet: str = Field(description="hash of the questions and answers that they saw")
    reviewers: list[str] = Field(description="as they called themselves, or as the file of their labels is called")
    items: Count = Field(description="questions that anybody labeled")
    labels: dict[str, Count] = Field(description="of all reviewers: for original, artifact, both and neither")
    decided: dict[str, Count] = Field(
        description="questions that more reviewers gave to the one model than to the other"
    )
    p: Number = Field(description="sign test over the decided questions, exact and two-sided")
    kappa: Number | None = Field(
        default=None, description="Cohen's, the mean over pairs of reviewers; null: they share no questions"
    )


class AuditRecord(Part):
    """An audit: both models, and every task."""

    format_version: Annotated[int, Field(ge=1)] = Field(description="of this file")
    llmc_version: str = Field(description="that made it")
    harness: str = Field(description="version of lm-eval")
    artifact: AuditedModel = Field(description="the model in question")
    original: AuditedModel = Field(description="what it is compared with")
    same_source: bool = Field(description="whether the artifact was made of that very original")
    limit: Count | None = Field(default=None, description="samples of a task at most")
    chat: bool = Field(description="whether prompts went through the chat template")
    tasks: dict[str, TaskRecord] = Field(description="by name")
    review: ReviewRecord | None = Field(default=None, description="of people, where there was one")
