"""How much pruning costs: the same model with more and fewer of its experts, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llmc.contracts.progress import Progress
from llmc.errors import InputError
from llmc.job import Limits, prepare
from llmc.quant.layerwise import quantize
from llmc.quant.prune import Criterion, Pruning, fractions, routers
from llmc.work_folder import WorkFolder

_EIGHTHS = 8  # more steps than these are tried only when they are asked for


@dataclass(frozen=True)
class SweepPoint:
    """keep, of the experts, chosen by `method`; kl and ppl over the check text, in torch."""

    keep: float
    method: str
    experts: int
    ppl_original: float
    ppl: float
    kl: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sweep(
    argument: str,
    keeps: Sequence[float],
    methods: Sequence[Criterion],
    quantized: bool,
    output: Path,
    progress: Progress,
) -> list[SweepPoint]:
    """One step per method and fraction; `keeps` empty: the eighths that the router can do with.

    Args:
        quantized: with the recipe's rules, otherwise experts are pruned and nothing else is changed.

    Works in `<output>.sweep` and leaves nothing there; InputError for a model without experts.
    """
    job, _ = prepare(argument, output, Limits(), progress)
    found = routers(job.checkpoint.spec.mlps)
    if not found:
        raise InputError(f"{argument}: this model has no experts to prune")
    possible = [each for each in fractions(found[0]) if (each * _EIGHTHS).denominator == 1]
    place = output.with_name(f"{output.name}.sweep")
    folder = WorkFolder(place, re.compile("model|scratch"))
    calibration, check = (torch.from_numpy(ids) for ids in (job.texts.calibration, job.texts.check))
    weights = [job.checkpoint.nbytes(f"model.layers.{i}.") for i in range(job.checkpoint.spec.num_all_layers)]
    steps = []
    with folder.lock():
        try:
            for method in methods:
                for keep in keeps or [float(each) for each in reversed(possible)]:
                    folder.clear()
                    with progress.stage(f"keep {keep:g} by {method}", weights):
                        result = quantize(
                            job.checkpoint, job.rules if quantized else [], Pruning(keep, method), calibration, check,
                            place / "model", place / "scratch", progress, job.options,
                            unchanged=job.files.require_unchanged,
                        )  # fmt: skip
                    experts = round(keep * found[0].num_experts)
                    steps.append(SweepPoint(keep, method, experts, result.ppl_original, result.ppl, result.kl))
        finally:
            folder.clear()
    return steps
