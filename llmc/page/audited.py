"""The section about an audit: what compression changed of answers to questions, never a bare score."""

from __future__ import annotations

from llmc.audit_measures import verdict
from llmc.audit_tables import measure_cells, samples
from llmc.contracts.audit import AuditRecord, MeasureRecord, ReviewRecord, TaskRecord
from llmc.contracts.report import Report
from llmc.page.blocks import Block, Figure, Paragraph, Section, Table
from llmc.page.charts import intervals

_HEAD = ("measure", "original → artifact", "difference, 95 %", "up / down", "p", "verdict")


def sections(report: Report) -> list[Section]:
    """Nothing of an artifact that was not audited."""
    if (audit := report.audit) is None:
        return []
    blocks: list[Block] = [Paragraph(_told(audit))]
    for name, task in audit.tasks.items():
        blocks.append(_task(name, task))
    if audit.review:
        blocks.append(_review(audit.review))
    return [Section("audit", "Answers to questions", "Audit", blocks)]


def _told(audit: AuditRecord) -> str:
    first, second = audit.original, audit.artifact
    source = "" if audit.same_source else " It was not made of that original."
    limit = f", at most {audit.limit:,} samples of each task" if audit.limit else ""
    asked = f"The same questions to {first.name} ({first.runs_on}) and to {second.name} ({second.runs_on}){limit}"
    return f"{asked}, by lm-eval {audit.harness}. Differences: artifact less original, on the same samples.{source}"


def _task(name: str, task: TaskRecord) -> Figure | Table:
    """Shares as a chart, whose scale means and others do not share."""
    lines = [_line(measure, found) for measure, found in task.measures.items() if found.kind == "share"]
    body = [(measure, *measure_cells(found), verdict(found)) for measure, found in task.measures.items()]
    table = Table(f"Measures of {name}", _HEAD, body, words=6)
    told = f"{samples(task)}; lines are 95 % intervals, and the mark is at no difference."
    return Figure(name, told, intervals(lines), table) if lines else table


def _line(name: str, found: MeasureRecord) -> tuple[str, float, float, float, str]:
    difference, low, high = (100 * each for each in (found.difference, found.low, found.high))
    return f"{name} ({verdict(found)})", difference, low, high, f"{difference:+.1f} pp"


def _review(review: ReviewRecord) -> Table:
    rows = [(who, f"{count:,}", f"{review.decided.get(who, 0):,}") for who, count in review.labels.items()]
    agreed = "" if review.kappa is None else f", kappa {review.kappa:.2f}"
    sign = f", sign test p = {review.p:.3f}"
    readers = len(review.reviewers)
    told = f"What {readers} reviewer{'s' if readers != 1 else ''} preferred, blind, of {review.items:,} answers"
    return Table(f"{told}{agreed}{sign}", ("preferred", "labels", "questions that most gave to it"), rows)
