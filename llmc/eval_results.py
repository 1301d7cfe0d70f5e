"""What an audit found, as the hub shows scores of a model: a file of `.eval_results/` in its repository."""

from __future__ import annotations

import re
from typing import Any

import yaml

from llmc.contracts.audit import AuditRecord, TaskRecord

EVAL_RESULTS = ".eval_results/llmc.yaml"
_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?: on the hub)?")


def eval_results(audit: AuditRecord) -> str:
    """Return the file's content; empty where no whole data set of the hub was asked.

    The value is the first measure of a task; what the original reached, and by what, is told beside it.
    """
    if audit.limit is not None:
        return ""
    entries = [found for name, task in audit.tasks.items() if (found := _entry(audit, name, task))]
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) if entries else ""


def _entry(audit: AuditRecord, name: str, task: TaskRecord) -> dict[str, Any] | None:
    match = _ON_HUB.fullmatch(task.data)
    if match is None or not task.measures:
        return None
    measure, found = next(iter(task.measures.items()))
    notes = (
        f"{measure} of {found.samples:,} samples; the original: {found.original:.4g}, difference "
        f"{found.difference:+.4g} [{found.low:+.4g}, {found.high:+.4g}] ({found.confidence} %); "
        f"llmc {audit.llmc_version}, lm-eval {audit.harness}"
    )
    identity = {"id": match[1], "task_id": name.rpartition(".")[2]}
    return {"dataset": identity, "value": found.artifact, "notes": notes}
