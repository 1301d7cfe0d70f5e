"""Steps of a pass whose files and results survive a kill: what is finished is not done again.

A step reads files that earlier steps made, and leaves files for later ones and results for good. Its record vouches for
both. What no step reads any more is deleted, but for what the step before the newest left: should the newest files turn
out damaged, one step is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmc.contracts.layer_record import ScratchFile, StepRecord
from llmc.quant.durable import damage, seal, whole_records, write_record
from llmc.quant.memory import release_memory


@dataclass(frozen=True)
class Made:
    """What a step leaves in the folder: files for later steps, and results."""

    files: Iterable[Path] = ()
    results: Iterable[Path] = ()


@dataclass(frozen=True)
class Step:
    """A step of a pass.

    Attributes:
        name: of its record, unlike any other's
        reads: names of files that earlier steps made
        run: does it, and returns what it made
    """

    name: str
    reads: tuple[str, ...]
    run: Callable[[], Made]


def run_steps(
    work_dir: Path, steps: Sequence[Step], unchanged: Callable[[], None], tell: Callable[[str], None]
) -> None:
    """Runs those that are not finished.

    Args:
        work_dir: belongs to these steps alone
        steps: in order
        unchanged: raises when what the steps read from elsewhere is not what it was; called before a step counts
        tell: is told in a line what is damaged, and what is done again for that
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    records = _finished(work_dir, steps, tell)
    for number in range(len(records), len(steps)):
        step = steps[number]
        made = step.run()
        unchanged()
        files, results = (sorted({path.name for path in paths}) for paths in (made.files, made.results))
        record = StepRecord(
            files=seal(work_dir, files, ScratchFile),
            results=seal(work_dir, results, ScratchFile),
        )
        write_record(_path(work_dir, step), record.to_json())
        records.append(record)
        _forget(work_dir, records, {*files, *_read_by(steps[number:])})
        release_memory()
    _forget(work_dir, records, set())


def _path(work_dir: Path, step: Step) -> Path:
    return work_dir / f"step-{step.name}.json"


def _read_by(steps: Iterable[Step]) -> set[str]:
    return {name for step in steps for name in step.reads}


def _forget(work_dir: Path, records: Iterable[StepRecord], needed: set[str]) -> None:
    for name in {name for record in records for name in record.files} - needed:
        (work_dir / name).unlink(missing_ok=True)


def _finished(work_dir: Path, steps: Sequence[Step], tell: Callable[[str], None]) -> list[StepRecord]:
    """Records of the first steps that need not be done again; those of others are removed."""
    paths = (_path(work_dir, step) for step in steps)
    records, found = whole_records(paths, StepRecord, lambda record: damage(work_dir, record.results))
    while records:
        made = {name: file for record in records for name, file in record.files.items()}
        needed = {name: made[name] for name in sorted(_read_by(steps[len(records) :]) & made.keys())}
        missing = damage(work_dir, needed)
        if missing is None:
            break
        found = found or missing
        records.pop()
    for step in steps[len(records) :]:
        _path(work_dir, step).unlink(missing_ok=True)
    if found:
        tell(f"  {found}: {steps[len(records)].name} and what is behind it are done again")
    return records
