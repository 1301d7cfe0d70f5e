"""An audit: the same questions to an artifact and to its original, answer by answer, and what the differences say.

BUILD.audit/audit.json      both models, every measure with its difference and interval
BUILD.audit/samples.jsonl   every sample with both answers and their values
BUILD.audit/answers/        what either model has answered so far, for an audit that goes on
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc import __version__
from llmc.audit_models import Place, artifact_place, audited, is_source, open_model, original_place
from llmc.audit_samples import Answers, paired_samples, read_answers, task_record
from llmc.audit_tasks import AuditTask, find_tasks
from llmc.contracts.audit import FORMAT_VERSION, AuditedModel, AuditRecord, ReviewRecord
from llmc.errors import InputError
from llmc.files import read_json
from llmc.progress import Display, duration
from llmc.quant.durable import write_json
from llmc.review_labels import read_audit
from llmc.review_sheet import KEY, write_sheet

RECORD, SAMPLES, ANSWERS = "audit.json", "samples.jsonl", "answers"
_MOST_KEY = 1 << 28  # bytes
_EVERY = 60  # seconds


@dataclass(frozen=True)
class Options:
    """How models are asked.

    Attributes:
        limit: Samples of a task at most.
        data: Folder with data sets of suites.
        include: Folder with tasks of the harness.
        chat: Whether prompts go through the chat template.
    """

    limit: int | None = None
    data: Path | None = None
    include: Path | None = None
    chat: bool = False
    fewshot: int | None = None
    batch: int | None = None
    backend: str | None = None
    threads: int | None = None
    device: int | None = None


def audit(
    artifact: Path, original: str | None, names: Sequence[str], output: Path, options: Options, display: Display
) -> AuditRecord:
    """Ask both models, and write what comes out of it to `output`.

    Raises:
        InputError: Something that is named does not exist or is broken.
        MachineError: lm-eval is not installed, the original does not fit into memory, the hub cannot be reached.
    """
    import llmc.runtime.lm_eval  # noqa: F401 - the error, before anything else, says what to install
    from llmc.audit_harness import load_tasks

    places = original_place(original, artifact), artifact_place(artifact)
    tasks = load_tasks(find_tasks(names, options.data, options.limit), options.include)
    _require_folder(output)
    sides: list[tuple[AuditedModel, dict[str, tuple[AuditTask, Answers]]]] = []
    for called, place in zip(("original", "artifact"), places, strict=True):
        sides.append(_ask(called, place, tasks, output / ANSWERS, options, display))
    (first, theirs), (second, ours) = sides
    record = AuditRecord(
        format_version=FORMAT_VERSION,
        llmc_version=__version__,
        harness=importlib.metadata.version("lm_eval"),
        artifact=second,
        original=first,
        same_source=is_source(places[0], artifact),
        limit=options.limit,
        chat=options.chat,
        tasks={name: task_record(task, theirs[name][1], ours[name][1]) for name, (task, _) in ours.items()},
    )
    samples = [each for name in ours for each in paired_samples(name, theirs[name][1], ours[name][1])]
    (output / SAMPLES).write_text("".join(f"{json.dumps(each)}\n" for each in samples), encoding="utf-8")
    write_sheet(output, samples)
    if review := _kept_review(output):
        record = record.model_copy(update={"review": review})
    write_json(output / RECORD, record.to_json())
    return record


def _kept_review(output: Path) -> ReviewRecord | None:
    """What people said of the same answers, when the same audit was made before."""
    if not (output / RECORD).exists() or not (output / KEY).exists():
        return None
    review, key = read_audit(output).review, read_json(output / KEY, _MOST_KEY)
    return review if review and review.sheet == key["sheet"] else None


def forget(output: Path) -> None:
    """Remove the answers that an earlier audit has left."""
    if (output / ANSWERS).is_dir():
        shutil.rmtree(output / ANSWERS)


def _require_folder(output: Path) -> None:
    known = {RECORD, SAMPLES, ANSWERS}
    found = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if output.exists() and (not output.is_dir() or (found and not known & found)):
        raise InputError(f"{output}: exists and holds no audit; it is left alone: choose another --output")
    output.mkdir(parents=True, exist_ok=True)


def _ask(
    called: str,
    place: Place,
    tasks: Sequence[tuple[AuditTask, dict[str, Any]]],
    folder: Path,
    options: Options,
    display: Display,
) -> tuple[AuditedModel, dict[str, tuple[AuditTask, Answers]]]:
    """What one model says to all tasks; tasks of the harness may be several under one name."""
    from llmc.audit_answers import KeptAnswers
    from llmc.audit_harness import ask
    from llmc.runtime.lm_eval import ArtifactLM

    found: dict[str, tuple[AuditTask, Answers]] = {}
    with open_model(place, options.backend, options.threads, options.device) as model:
        told = audited(place, model)
        lm = ArtifactLM(model, options.batch)
        decides = json.dumps([told.digest, told.runs_on, lm.batch, options.chat, __version__])
        own = folder / hashlib.sha256(decides.encode()).hexdigest()[:16]
        for task, loaded in tasks:
            with display.stage(f"{called}: {task.name}"):
                kept = KeptAnswers(lm, own, Told(display, f"{called}: {task.name}"))
                asked = ask(kept, task, loaded, options.fewshot, options.limit, options.chat)
            for name, (samples, higher) in asked.items():
                found[name] = task, read_answers(task, samples, higher)
    return told, found


class Told:
    """How far a task is, and what is left: on a terminal all the time, elsewhere in a line every minute."""

    def __init__(self, display: Display, name: str) -> None:
        self.display, self.name, self.last = display, name, time.monotonic()

    def __call__(self, done: int, total: int, left: float | None) -> None:
        """`left`: seconds, if anything has been asked yet."""
        self.display.update(f"{done} of {total} answers", done / max(total, 1), eta=left)
        if done < total and not self.display.console.is_terminal and time.monotonic() - self.last >= _EVERY:
            self.last = time.monotonic()
            rest = "" if left is None else f", {duration(left)} left"
            self.display.line(f"  {self.name}: {done:,} of {total:,} answers{rest}")
