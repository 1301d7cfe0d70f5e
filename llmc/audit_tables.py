"""An audit on the terminal: differences with their intervals."""

from __future__ import annotations

from rich import box
from rich.table import Table

from llmc.audit_measures import verdict
from llmc.contracts.audit import AuditRecord, MeasureRecord
from llmc.tables import table

_COLUMNS = ("original → artifact", "difference, 95 %", "up / down", "p", "")


def audit_tables(record: AuditRecord) -> list[Table]:
    """Return a table for each task, with a row for each measure."""
    first, second = record.original, record.artifact
    models = f"{second.name} ({second.runs_on}) against {first.name} ({first.runs_on})"
    if not record.same_source:
        models += ", which it was not made of"
    made: list[Table] = []
    for name, task in record.tasks.items():
        where = f"{name}: {task.samples:,} samples ({task.data})"
        made.append(table(where if made else f"{models}\n\n{where}", "measure", *_COLUMNS))
        made[-1].box = box.SIMPLE
        for measure, found in task.measures.items():
            of = f" ({found.samples:,})" * (found.samples != task.samples)
            made[-1].add_row(f"{measure}{of}", *measure_cells(found), verdict(found))
    return made


def measure_cells(found: MeasureRecord) -> list[str]:
    """Return both values, the difference with its interval, changes in both directions and p, in words."""
    unit, places, sign = (100, 1, "%") if found.kind == "share" else (1, 4, "")
    original, artifact = (f"{unit * each:.{places}f}{sign}" for each in (found.original, found.artifact))
    difference, low, high = (f"{unit * each:+.{places}f}" for each in (found.difference, found.low, found.high))
    p = "" if found.p is None else f"{found.p:.3f}" if found.p >= 0.001 else "< 0.001"
    points = " pp" if found.kind == "share" else ""  # percentage points
    return [f"{original} → {artifact}", f"{difference}{points} ({low} … {high})", f"{found.gained} / {found.lost}", p]
