"""A measurement of sensitivities by itself, before anything is built."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmc.budget import BudgetProblem
from llmc.contracts.progress import Progress
from llmc.contracts.sensitivity import SensitivityRecord
from llmc.job import Limits, prepare
from llmc.planning import PlannedBudget
from llmc.progress import Display
from llmc.recipe import RecipeLike
from llmc.sensitivity import measured, measurement_folder, planned, record_path


@dataclass(frozen=True)
class Measured:
    """What a measurement found.

    Attributes:
        path: Where it is kept.
        record: All of it.
        budget: The curve, and what becomes of the recipe's budget if it has one.
    """

    path: Path
    record: SensitivityRecord
    budget: PlannedBudget

    def to_json(self) -> dict[str, Any]:
        """Return what `llmc sensitivity --json` prints."""
        return {"path": str(self.path), **self.record.to_json(), "budget": asdict(self.budget)}


def measure_sensitivity(
    recipe: RecipeLike, output: Path | str | None, limits: Limits, fresh: bool, progress: Progress
) -> Measured:
    """Measure what the modules of a recipe's model lose, or take up what was measured.

    Args:
        recipe: See `llmc.build`. Rules count as constraints where it has a budget, otherwise not at all.
        output: Where an artifact would go; the measurement is kept beside it.
        limits: What it may take.
        fresh: Whether to measure anew.
        progress: Is told.
    """
    job, place = prepare(recipe, output, limits, progress)
    problem = job.problem or BudgetProblem.of(job.checkpoint, job.asked.model_copy(update={"quantize": []}))
    with place.lock():
        if isinstance(progress, Display):
            progress.log = place.log
        work = place.work / measurement_folder(job, problem)
        record = measured(job, problem, place.path.parent, work, fresh, progress)
        shutil.rmtree(work, ignore_errors=True)
    _, budget = planned(problem, record)
    return Measured(record_path(place.path.parent, job.source.id, record.key), record, budget)
