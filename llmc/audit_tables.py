"""An audit on the terminal: differences with their intervals."""

from __future__ import annotations

from rich.table import Table

from llmc.audit_measures import verdict
from llmc.contracts.audit import AuditRecord, MeasureRecord, ReviewRecord, TaskRecord
from llmc.tables import table

_COLUMNS = ("original → artifact", "difference (95 %)", "↑ / ↓", "p", "")
_GAP = (0, 1, 0, 0)


def audit_tables(record: AuditRecord) -> list[Table]:
    """Return a table for each task, with a row for each measure."""
    first, second = record.original, record.artifact
    models = f"{second.name} ({second.runs_on}) against {first.name} ({first.runs_on})"
    if not record.same_source:
        models += ", which it was not made of"
    made: list[Table] = []
    for name, task in record.tasks.items():
        where = f"{name}: {samples(task)}"
        made.append(table(f"\n{where}" if made else f"{models}\n\n{where}", "measure", *_COLUMNS))
        made[-1].box, made[-1].padding, made[-1].pad_edge = None, _GAP, False
        for measure, found in task.measures.items():
            of = f" ({found.samples:,})" * (found.samples != task.samples)
            made[-1].add_row(f"{measure}{of}", *measure_cells(found), verdict(found))
    return made


def samples(task: TaskRecord) -> str:
    """Return how many samples a task has, how many groups, and where they come from."""
    groups = max((each.groups or 0 for each in task.measures.values()), default=0)
    return f"{task.samples:,} samples{f' in {groups:,} groups' * bool(groups)} ({task.data})"


def measure_cells(found: MeasureRecord) -> list[str]:
    """Return both values, the difference with its interval (of shares in percentage points), changes in both directions
    and p, in words.
    """
    unit, places, sign = (100, 1, " %") if found.kind == "share" else (1, 3, "")
    original, artifact = (f"{unit * each:.{places}f}" for each in (found.original, found.artifact))
    difference, low, high = (f"{unit * each:+.{places}f}" for each in (found.difference, found.low, found.high))
    p = "" if found.p is None else f"{found.p:.3f}" if found.p >= 0.001 else "<.001"
    return [
        f"{original} → {artifact}{sign}",
        f"{difference} ({low} … {high})",
        f"{found.gained} / {found.lost}",
        p,
    ]


def review_table(found: ReviewRecord) -> Table:
    """Return what reviewers said, as a table."""
    made = table(f"review by {', '.join(found.reviewers)}", "what", "how it came out", numbers=False)
    made.add_row("labels", ", ".join(f"{name} {count}" for name, count in found.labels.items()))
    decided = f"original {found.decided['original']}, artifact {found.decided['artifact']}; sign test p {found.p:.3f}"
    made.add_row(f"of {found.items} questions", decided)
    agreement = "no question has two labels" if found.kappa is None else f"Cohen's kappa {found.kappa:.2f}"
    made.add_row("agreement", agreement)
    return made
