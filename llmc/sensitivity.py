"""What modules lose per scheme: measured once for a model and a text, and taken up by every later build and plan."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llmc.budget import BudgetProblem, Losses
from llmc.budget_recipe import shown_budget
from llmc.calibration_recipe import Calibration
from llmc.contracts.manifest import BudgetPoint, BudgetRecord, RuleRecord, SpentBudget
from llmc.contracts.part import checked
from llmc.contracts.progress import Progress
from llmc.contracts.sensitivity import GroupLosses, SensitivityRecord
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.layer_modules import layer_modules
from llmc.convert.spec import LinearSpec, MixtureOfExpertsSpec, ModelSpec
from llmc.convert.tensor_names import ModuleName
from llmc.errors import InputError
from llmc.files import read_json
from llmc.planning import Plan, PlannedBudget, Point
from llmc.quant.durable import write_json
from llmc.quant.ends import EMBEDDING, HEAD
from llmc.quant.gradients import step_sizes
from llmc.quant.schemes import scheme
from llmc.recipe import Recipe
from llmc.scheme_options import Group
from llmc.stages import code_version, key_of, module_version, versions

if TYPE_CHECKING:
    from llmc.job import Job

SUFFIX = ".sensitivity.json"
# Of the calibration text. What decides how far chance is off are sequences, not tokens, so that they are short.
TOKENS, LENGTH = 16384, 256
_DRAWS = 2  # of labels
_MODULES = (
    "change", "drawn_labels", "gradients", "head_loss", "layer_inputs", "observed", "sensitivity", "solver_share",
)  # fmt: skip
_MOST_BYTES = 1 << 28


def shape(samples: int, length: int) -> tuple[int, int]:
    """Sequences, and tokens of each, that are measured on of so many windows of this length."""
    each = min(LENGTH, length)
    return min(samples * (length // each), -(-TOKENS // each)), each


def sensitivity_key(job: Job) -> str:
    """A hash of everything that decides a measurement, but for the schemes, of which later ones may take more."""
    if job.texts.is_own:  # and is not written for the sake of a key
        text: list[int | str] = list(job.texts.key()[:1])
    else:
        ids = _ids(job)
        text = [*ids.shape, key_of(ids.tolist())]
    return key_of(
        job.source_files,
        text,
        str(job.options.device.type),
        job.options.negative_scales,
        code_version("convert", without=("graph/", "targets/", "engines/", "kernels/")),
        [module_version(f"llmc.quant.{name}") for name in _MODULES],
        code_version("quant.schemes"),
        versions("torch", "numpy"),
    )


def record_path(folder: Path, model: str, key: str) -> Path:
    """Where a measurement lies, beside what is built."""
    name = re.sub(r"[^\w.-]", "-", Path(model).name).strip(".-")[:60] or "model"
    return folder / f"{name}-{key[:12]}{SUFFIX}"


def headers_key(checkpoint: Checkpoint) -> str:
    """A hash of what a model is like, without reading a weight: two of one kind have the same."""
    return key_of(checkpoint.config, [[name, *checkpoint.shape(name)] for name in checkpoint.names()])


def found_record(folder: Path, model: str, problem: BudgetProblem) -> SensitivityRecord | None:
    """What was measured of a model by this name and of this kind: good enough for a plan; None: not enough."""
    key = headers_key(problem.checkpoint)
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        record = read_record(path)
        if record and (record.model, record.headers) == (model, key) and is_known(problem, record):
            return record
    return None


def measured(
    job: Job, problem: BudgetProblem, folder: Path, work: Path, fresh: bool, progress: Progress
) -> SensitivityRecord:
    """Return what an earlier build has measured, or measure.

    Args:
        job: The build.
        problem: What has to be known.
        folder: Where measurements are kept.
        work: Holds what an interrupted measurement goes on from.
        fresh: Whether to forget what is there.
        progress: Is told.
    """
    key = sensitivity_key(job)
    path = record_path(folder, job.source.id, key)
    known = None if fresh else read_record(path)
    if known is not None and known.key == key:
        if is_known(problem, known):
            progress.line(f"sensitivities: taken from {path}")
            return known
    else:
        known = None
    record = _measure(job, problem, known, key, work, progress)
    write_json(path, record.to_json())
    progress.line(f"sensitivities: kept in {path}; builds with another budget take them from there")
    return record


def read_record(path: Path) -> SensitivityRecord | None:
    """A measurement; None where there is none, or nothing that could be read."""
    try:
        return checked(SensitivityRecord, read_json(path, _MOST_BYTES), str(path)) if path.exists() else None
    except InputError:
        return None


def losses(record: SensitivityRecord) -> Losses:
    """What an allocation needs to know of it."""
    return {name: group.losses for name, group in record.groups.items()}


def measurement_folder(job: Job, problem: BudgetProblem | None) -> str:
    """Name of the folder that an interrupted measurement goes on from, whatever the budget."""
    return key_of(sensitivity_key(job), problem.schemes, _solved(problem))[:16] if problem else ""


def spend(problem: BudgetProblem, record: SensitivityRecord) -> SpentBudget:
    """Return the allocation of least predicted loss within the recipe's budget."""
    found = problem.solve(losses(record))
    rules = [
        RuleRecord(match=each.match, scheme=each.only_scheme, method=each.method) for each in found.recipe.quantize
    ]
    points = [BudgetPoint(**vars(each)) for each in map(rounded, problem.curve(losses(record)))]
    point = rounded(found.point)
    return SpentBudget(
        record=BudgetRecord(
            asked=shown_budget(*(problem.recipe.budget or ("bits", 0))),
            bytes=point.bytes,
            bits=point.bits,
            predicted_kl=point.kl,
            tokens=record.tokens,
            roles=found.roles,
            role_bits={role: round(bits, 4) for role, bits in found.role_bits.items()},
            curve=points,
        ),
        rules=rules,
    )


def planned(problem: BudgetProblem, record: SensitivityRecord | None) -> tuple[Recipe, PlannedBudget]:
    """Return the recipe as a budget would make it, by what was measured or, without that, by a guess."""
    asked = shown_budget(*(problem.recipe.budget or ("bits", 0)))
    if record is None:
        found = problem.solve(problem.guess)
        return found.recipe, PlannedBudget(asked, None, replace(rounded(found.point), kl=math.nan), [])
    found, points = problem.solve(losses(record)), problem.curve(losses(record))
    told = f"{record.tokens:,} tokens ({record.text})"
    return found.recipe, PlannedBudget(asked, told, rounded(found.point), [*map(rounded, points)])


def rounded(point: Point) -> Point:
    """The same, with as many digits as mean something."""
    return replace(point, bits=round(point.bits, 4), kl=float(f"{point.kl:.4g}"))


def _ids(job: Job) -> torch.Tensor:
    """The beginnings of all windows, then what follows them, as far as needed."""
    ids = torch.from_numpy(job.texts.calibration)
    sequences, length = shape(*ids.shape)
    pieces = ids[:, : ids.shape[1] // length * length].unflatten(1, (-1, length))
    return pieces.transpose(0, 1).flatten(0, 1)[:sequences].contiguous()


def with_measurement(plan: Plan, spec: ModelSpec, calibration: Calibration) -> Plan:
    """Return the plan of a build that measures before it quantizes: with room for the inputs of all layers, their
    gradients, and what the modules of one layer read and give back.
    """
    sequences, length = shape(*calibration.windows(spec.max_position_embeddings))
    widest = 0
    for index in range(spec.num_all_layers):
        mlp, channels = spec.mlps[index], 0.0
        share = mlp.router.top_k / mlp.router.num_experts if isinstance(mlp, MixtureOfExpertsSpec) else 1.0
        for name, module in layer_modules(spec, index).items():
            if isinstance(module, LinearSpec):
                each = module.inputs + _DRAWS * module.outputs
                channels += each * (share if ModuleName.parse(name).expert is not None else 1.0)
        widest = max(widest, round(channels))
    streams = spec.num_all_layers + 1 + 2 * _DRAWS
    needed = 4 * sequences * length * (streams * spec.hidden_size + widest)
    return replace(plan, work_disk=max(plan.work_disk, needed))


def _solved(problem: BudgetProblem) -> list[str]:
    """Modules that are not rounded to nearest. An embedding is, whatever its rule says; one matrix for both is solved
    as a head.
    """
    mine = [module for group in problem.groups for module in group.modules if group.methods[module] != "rtn"]
    tied = problem.checkpoint.spec.tie_word_embeddings
    return [HEAD if tied and module == EMBEDDING else module for module in mine if tied or module != EMBEDDING]


def is_known(problem: BudgetProblem, record: SensitivityRecord) -> bool:
    """Tell whether a record has all losses that a problem needs, by the methods of its rules."""
    return not any(_missing(group, record) for group in problem.groups)


def _missing(group: Group, record: SensitivityRecord | None) -> list[str]:
    """Schemes whose losses, by the group's methods, are to be measured."""
    known = record.groups.get(group.name) if record else None
    losses = known.losses if known and known.methods == _methods(group) else {}
    return [name for option in group.options if (name := option.scheme) is not None and name not in losses]


def _methods(group: Group) -> list[str]:
    return sorted({"rtn" if method == "rtn" else "solved" for method in group.methods.values()})


def _members(checkpoint: Checkpoint, group: Group) -> list[str]:
    """What a group's losses are of: of one matrix for embedding and head, the sum of both."""
    tied = checkpoint.spec.tie_word_embeddings and EMBEDDING in group.modules
    return [*group.modules, *([HEAD] if tied else [])]


def _measure(
    job: Job, problem: BudgetProblem, known: SensitivityRecord | None, key: str, work: Path, progress: Progress
) -> SensitivityRecord:
    from llmc.quant.sensitivity import measure

    missing = {group.name: _missing(group, known) for group in problem.groups}
    checkpoint, ids, options = job.checkpoint, _ids(job), job.options
    members = {group.name: _members(checkpoint, group) for group in problem.groups}
    candidates = {
        module: [*map(options.taken, map(scheme, missing[name]))]
        for name, modules in members.items()
        for module in modules
        if missing[name]
    }
    with progress.stage("sensitivity", step_sizes(checkpoint, EMBEDDING in candidates)):
        found = measure(
            checkpoint, candidates, ids, work, solved=_solved(problem), draws=_DRAWS,
            memory_budget=options.memory_budget, device=options.device, progress=progress,
            unchanged=job.files.require_unchanged, tell=progress.line,
        )  # fmt: skip
    groups = {}
    for group in problem.groups:
        new = {name: sum(found[module][name] for module in members[group.name]) for name in missing[group.name]}
        before = known.groups.get(group.name) if known else None
        kept = before.losses if before and before.methods == _methods(group) else {}
        losses = {**kept, **{name: float(f"{loss:.6g}") for name, loss in new.items()}}
        groups[group.name] = GroupLosses(
            role=group.role, parameters=group.parameters, methods=_methods(group), losses=losses
        )
    others = known.groups if known else {}
    return SensitivityRecord(
        key=key,
        model=job.source.id,
        headers=headers_key(checkpoint),
        text=job.texts.note,
        tokens=ids.numel(),
        groups={**others, **groups},
    )
