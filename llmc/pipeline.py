"""The build: checkpoint → quantized checkpoint → targets → check → manifest → artifact directory.

Each step is a stage with a key (see `stages`); quantization also resumes within itself, layer by layer. All work
happens in `<output>.work` and is renamed at the end, so that a build killed at any moment leaves either no artifact
or a whole one, and the next run goes on where it stopped, or behind the last thing that is still as it was written.
An earlier artifact saves a build the stages whose keys are still the same (see `reuse`). A resumed build ends in the
same bytes, but for engines that are compiled anew: TensorRT-RTX numbers the values in an engine differently each
time, a few bytes of it.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from llmc import machine
from llmc.bill_of_materials import bill_of_materials
from llmc.byte_progress import ByteProgress
from llmc.card import model_card
from llmc.contracts.manifest import (
    BudgetRecord,
    CheckedGraphs,
    Checks,
    GateRecord,
    Manifest,
    QuantizedModel,
    SpentBudget,
    TargetRecord,
)
from llmc.contracts.progress import Progress, Silent
from llmc.convert.checkpoint import REWRITTEN, Checkpoint
from llmc.convert.targets import target
from llmc.errors import InputError, MachineError, MissingPackageError, RefusedError
from llmc.extras import install
from llmc.job import Job, Limits, prepare, warn
from llmc.manifest import build_manifest, describe_quantized, hash_files_of
from llmc.measure import Speed, measure, peak_memory
from llmc.output import OutputFolder, read_manifest, whole
from llmc.page import report_page
from llmc.progress import Display
from llmc.provenance import provenance
from llmc.publish import Published, publish, require_login
from llmc.quant.assign import Rule
from llmc.quant.durable import damage, write_json
from llmc.quant.layerwise import quantize
from llmc.recipe import RecipeLike
from llmc.reference import Reference, beside
from llmc.report import report_of, worst_in_text
from llmc.reuse import earlier, quantized_files
from llmc.runtime.artifact import BILL, CARD, MANIFEST, PROVENANCE, REFERENCE, REPORT, REPORT_PAGE, digest
from llmc.runtime.as_built import ask
from llmc.sensitivity import measured, measurement_folder, spend
from llmc.sidecars import copy_sidecar
from llmc.stages import Stages, versions

FINGERPRINT = "fingerprint.json"  # of the quantization that a work directory is for
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class BuildResult:
    """What `build` returns. Only the manifest is part of the artifact.

    Attributes:
        path: where the artifact lies: the output, or `<output>.rejected` where a gate was missed
        manifest: what was done and measured
        up_to_date: whether there was nothing to do
        seconds: what the build took
        peak_memory: bytes of memory at most
        speed: of the artifact on this machine, where it was checked
        published: where it is on the hub, where the recipe says that it goes there
    """

    path: Path
    manifest: Manifest = field(repr=False)
    up_to_date: bool = False
    seconds: float = 0.0
    peak_memory: int = 0
    speed: Speed | None = None
    published: Published | None = None

    @property
    def missed_gates(self) -> list[GateRecord]:
        """The recipe's gates that the artifact does not pass."""
        return self.manifest.checks.missed if self.manifest.checks else []

    def to_json(self) -> dict[str, Any]:
        """Return what `llmc build --json` prints."""
        return {
            "path": str(self.path),
            "up_to_date": self.up_to_date,
            "seconds": round(self.seconds, 1),
            "peak_memory": self.peak_memory,
            "speed": vars(self.speed) if self.speed else None,
            "published": self.published.to_json() if self.published else None,
            "manifest": self.manifest.to_json(),
        }


def build(
    recipe: RecipeLike,
    output: Path | str | None = None,
    *,
    memory: int | None = None,
    gpu_memory: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    finish: Callable[[Path], object] | None = None,
    model: str | None = None,
) -> BuildResult:
    """Build an artifact: quantized checkpoint, graphs, engines, and the measurement against the original.

    Nothing is done when the output is up to date. A build that was interrupted goes on where it stopped. A missed gate
    does not raise: the result names it, and the artifact lies beside the output as `<output>.rejected`. What keeps its
    gates is published where the recipe says so, if it is not there yet.

    Args:
        recipe: a recipe; what a YAML file would hold, as a dictionary; the path of such a file; the name of a recipe
            that ships with llmc; or a model, for the default recipe. Relative paths in it start from the file, or from
            the current folder where there is none.
        output: where the artifact goes; default: build/NAME
        memory: bytes that the build may take; None: what there is
        gpu_memory: bytes of a GPU that is to calibrate and solve; None: the GPU is left alone
        fresh: forget what an earlier or interrupted build left
        progress: is told how far the build is; None: nobody is
        finish: is called with the place of an artifact that keeps its gates, before it is published: may sign it
        model: what the recipe is used for instead of its own model: a folder, a hub id, or builtin:NAME

    Raises:
        InputError: for what the recipe, the model or the texts have wrong
        MachineError: for what this machine lacks
    """
    start, progress = time.monotonic(), progress or Silent()
    if memory is not None:
        machine.spare_memory()
    job, place = prepare(recipe, output, Limits(memory, gpu_memory), progress, model)
    if job.asked.publish is not None:
        require_login(job.asked.publish.repo)
    keys = job.keys()
    if not fresh and (document := read_manifest(place.path)) and document.get("key") == keys["build"]:
        if manifest := whole(place.path, document):
            place.clear()
            published = _finish(job, place.path, progress, finish)
            return BuildResult(place.path, manifest, up_to_date=True, published=published)
        progress.line(f"{place.path}: files are missing or cut short; building again")
    if "onnxruntime" in job.targets and not versions("onnxruntime", "onnxruntime-gpu"):
        raise MachineError("the result is checked with ONNX Runtime, which is not installed; " + install("onnxruntime"))
    home = place.work / keys["work"][:16]
    if not fresh:
        _refuse_other_work(place, home, job.fingerprint())
    before = None if fresh else earlier(place, keys)
    already = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    already += before.nbytes() + job.plan.work_disk if before else 0
    job.plan.require(place.path, already)
    with place.lock():
        if isinstance(progress, Display):
            progress.log = place.log
        progress.line(f"building {place.path}")
        try:
            work = _Build(job, place, keys, home, fresh, progress)
            if before:
                before.take_up(work.stages, progress.line)
            result = BuildResult(place.path, work.run(), speed=work.speed)
            job.files.require_unchanged()
            passed = not result.missed_gates
            if not job.recipe.check.publish_text:
                apart = work.reference.set_apart(place.path if passed else place.rejected)
                progress.line(f"the check text and what the original said about it: {apart}, not in the artifact")
            result.path = place.place(work.artifact, passed)
            if passed:
                beside(place.rejected).unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                job.files.require_unchanged()
                raise
            raise MachineError(
                f"{error.filename or place.work}: no space left on the disk; free some and build again: "
                "what is finished is kept"
            ) from error
    result.seconds = time.monotonic() - start
    result.peak_memory = peak_memory()
    if passed:
        result.published = _finish(job, result.path, progress, finish)
    return result


def _finish(job: Job, path: Path, progress: Progress, finish: Callable[[Path], object] | None) -> Published | None:
    """What the recipe says of it, once the artifact is in its place: that stays, whatever the hub says."""
    if finish is not None:
        finish(path)
    if (to := job.asked.publish) is None:
        return None
    with ByteProgress() if isinstance(progress, Display) else nullcontext(progress) as told:
        made = publish(path, to.repo, private=to.private, branch=to.branch, progress=told)
    progress.line(f"published: {made.name}, revision {made.revision}")
    return made


def _refuse_other_work(place: OutputFolder, home: Path, fingerprint: dict[str, Any]) -> None:
    """InputError, with what differs, when an interrupted build of something else has layers to lose."""
    for other in place.work.glob("*"):
        record = other / FINGERPRINT
        done = any(other.glob("scratch/layer-*.json")) or (other / "stages" / "quantize.json").exists()
        if other == home or not record.exists() or not done:
            continue
        try:
            earlier = dict(json.loads(record.read_text("utf-8")))
        except (ValueError, TypeError):
            raise InputError(
                f"{place.work} holds an interrupted build, and {record.name} in it is damaged and does not say "
                "of what; give --fresh to begin anew, or choose another --output"
            ) from None
        differs = [name for name, value in fingerprint.items() if earlier.get(name) != value]
        raise InputError(
            f"{place.work} holds an interrupted build with another {' and another '.join(differs)}; "
            "put that back to go on with it, give --fresh to begin anew, or choose another --output"
        )


class _Build:
    def __init__(
        self, job: Job, place: OutputFolder, keys: dict[str, str], home: Path, fresh: bool, progress: Progress
    ) -> None:
        self.job, self.keys, self.home, self.progress = job, keys, home, progress
        self.speed: Speed | None = None
        self.place, self.fresh = place, fresh
        self.measuring = place.work / measurement_folder(job, job.problem)
        place.folder.clear(keep=() if fresh else (home, self.measuring))  # an interrupted build's of something else
        self.artifact = self.home / "artifact"
        self.artifact.mkdir(parents=True, exist_ok=True)
        self.reference = Reference(self.artifact, self.home)
        self.reference.put_back()
        write_json(self.home / FINGERPRINT, job.fingerprint())
        job.texts.write_into(self.home / "self", progress)
        self.stages = Stages(self.home / "stages", self.artifact, progress.line)

    def run(self) -> Manifest:
        """The finished artifact's manifest."""
        sidecars = self._copy_sidecars()
        spent = self._spend()
        quantized = QuantizedModel.model_validate(
            self.stages.run("quantize", self.keys["quantize"], self._quantize, lambda _: quantized_files(self.artifact))
        )
        shutil.rmtree(self.home / "scratch", ignore_errors=True)
        self._remove_all_but({*sidecars, *self.stages.files()})  # what a killed run left
        checkpoint = Checkpoint.open(self.artifact)
        targets = {name: self._target(checkpoint, name) for name in self.job.targets}
        self.stages.forget_all_but(
            {"sensitivity", "quantize", "check", *targets}
        )  # targets that the recipe no longer names
        self._remove_all_but({*sidecars, *self.stages.files()})
        manifest = build_manifest(self.job, checkpoint, quantized, targets, self.keys, spent)
        files = hash_files_of(self.artifact)  # neither card nor report is among them: _remove_all_but
        apart = {} if self.job.recipe.check.publish_text else {"reference": files.pop(REFERENCE)}
        manifest = manifest.model_copy(update={"files": files, **apart})
        if "onnxruntime" in targets:
            write_json(self.artifact / MANIFEST, manifest.to_json())  # the runtime wants one
            checked = CheckedGraphs.model_validate(self.stages.run("check", self.keys["check"], self._check))
            recorded = {name: getattr(checked.built, name) for name in checked.built.model_fields_set - {"digests"}}
            built = manifest.built.model_copy(update=recorded)
            manifest = manifest.model_copy(update={"checks": self._judged(checked.checks), "built": built})
        elif isinstance(quantized.torch_checks, Checks):
            manifest = manifest.model_copy(update={"checks": self._judged(quantized.torch_checks)})
        self._tell(manifest)
        files = hash_files_of(self.artifact, files)
        if apart:
            del files[REFERENCE]
        manifest = manifest.model_copy(update={"files": files})
        manifest = manifest.model_copy(update={"digest": digest(manifest.to_json())})
        write_json(self.artifact / MANIFEST, manifest.to_json())
        if found := damage(self.artifact, self.stages.files()):
            raise MachineError(
                f"{self.artifact}: {found}, though nothing wrote there; look after the disk, build again"
            )
        return manifest

    def _spend(self) -> BudgetRecord | None:
        """Decides how a budget is spent; None: the recipe has none."""
        if self.job.problem is None:
            return None
        spent = SpentBudget.model_validate(self.stages.run("sensitivity", self.keys["sensitivity"], self._measure))
        self.job = self.job.with_rules([Rule(**dict(rule)) for rule in spent.rules])
        warn(self.job.recipe.layout, self.job.plan, self.job.checkpoint, self.progress)
        return spent.record

    def _measure(self) -> dict[str, Any]:
        problem = self.job.problem
        assert problem is not None
        record = measured(self.job, problem, self.place.path.parent, self.measuring, self.fresh, self.progress)
        shutil.rmtree(self.measuring, ignore_errors=True)
        return spend(problem, record).to_json()

    def _copy_sidecars(self) -> list[str]:
        """Tokenizer, license, … of the source, by their names."""
        source = self.job.checkpoint
        shards = {shard.name for shard in source.shards}
        names = [name for name in self.job.source_files if name not in {*shards, *REWRITTEN}]
        made = self.job.made_tokenizer.files if self.job.made_tokenizer else {}
        if self.job.made_tokenizer:  # which other programs might read in place of what was made
            names.remove(self.job.made_tokenizer.source)
        for name in names:
            if name not in made:
                copy_sidecar(source.path, name, self.artifact)
        for name, data in made.items():
            (self.artifact / name).write_bytes(data)
        self.job.files.require_unchanged()
        return sorted({*names, *made})

    def _quantize(self) -> dict[str, Any]:
        job, checkpoint, scratch = self.job, self.job.checkpoint, self.home / "scratch"
        weights = [checkpoint.nbytes(f"model.layers.{index}.") for index in range(checkpoint.spec.num_all_layers)]
        calibration, check = (torch.from_numpy(ids) for ids in (job.texts.calibration, job.texts.check))
        with self.progress.stage("quantize", weights):
            try:
                result = quantize(
                    checkpoint, job.rules, job.pruning, calibration, check, self.artifact, scratch, self.progress,
                    job.options, job.files.require_unchanged, self.progress.line,
                )  # fmt: skip
            except InputError:
                job.files.require_unchanged()  # a file that is being replaced looks broken; what was finished is not
                if not any(scratch.glob("layer-*.json")):  # finished layers are kept, whatever became of the next one
                    shutil.rmtree(self.home)
                raise
        return describe_quantized(job, Checkpoint.open(self.artifact), result).to_json()

    def _target(self, checkpoint: Checkpoint, name: str) -> TargetRecord:
        chosen = target(name)
        options = chosen.Options.model_validate(self.job.targets[name])

        def work() -> dict[str, Any]:
            with self.progress.stage(f"target {name}"):
                return vars(chosen.build(checkpoint, options, self.artifact, self.progress))

        try:
            made = self.stages.run(name, self.keys[name], work, lambda made: made["files"].values())
        except MissingPackageError as error:
            self.progress.line(f"target {name}: skipped, {error}")
            return TargetRecord(name=name, skipped=error.reason, files={})
        except RefusedError as error:
            rules = self.job.rules_at(_module(error.node))
            causes = [f"{{match: {rule.match}, scheme: {rule.scheme}}}" for rule in rules]
            caused = f"; these weights are quantized by the recipe's rule {' and '.join(causes)}" if causes else ""
            raise InputError(f"target {name}: {error}{caused}") from error
        return TargetRecord.model_validate(made)

    def _remove_all_but(self, kept: set[str]) -> None:
        """Removes what targets that the recipe no longer names, or a killed run, left in the artifact."""
        for path in sorted(self.artifact.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(self.artifact).as_posix() not in kept:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _check(self) -> dict[str, Any]:
        from llmc.runtime import load

        with self.progress.stage("check"), load(self.artifact, backend="onnxruntime") as model:
            reference = self.artifact / REFERENCE
            checks = model.check(self.progress, reference).to_json() | {"gates": []}
            probe = ask(model.artifact, model.backend)
            built: dict[str, Any] = {} if probe is None else {"probe": probe.record()}
            self.progress("decode", 1.0)
            self.speed, drafts = measure(model, reference)
        if drafts is not None and drafts.drafted:
            checks["mtp_acceptance"] = drafts.share
            built |= {"mtp_accepted": drafts.accepted, "mtp_drafted": drafts.drafted}
        return {"checks": checks, "built": built}

    def _tell(self, manifest: Manifest) -> None:
        """Writes the report, its page and the card, which take their numbers from there; and what it is made of."""
        worst = []
        if self.job.recipe.check.publish_text:
            worst = worst_in_text(manifest.checks or None, self.job.texts.check, self.job.tokenizer.decode)
        report = report_of(manifest, worst)
        write_json(self.artifact / REPORT, report.to_json())
        (self.artifact / REPORT_PAGE).write_text(report_page(report), encoding="utf-8")
        (self.artifact / CARD).write_text(model_card(report), encoding="utf-8")
        write_json(self.artifact / PROVENANCE, provenance(manifest))
        write_json(self.artifact / BILL, bill_of_materials(manifest))

    def _judged(self, checks: Checks) -> Checks:
        """What was measured, held against the recipe's gates."""
        from llmc.runtime.check import CheckReport
        from llmc.runtime.gates import gates

        report = CheckReport(**{each.name: getattr(checks, each.name) for each in fields(CheckReport)})
        recipe = self.job.recipe.check
        judged = gates(report, recipe.gates.limits(), recipe.default_gates)
        return checks.model_copy(update={"gates": [GateRecord.model_validate(asdict(gate)) for gate in judged]})


def _module(node: str) -> str:
    """The part of the model that a node of a graph is named after: `model.layers.0.mlp/MatMul`; none: no such part."""
    path, _, _ = node.rpartition("/")
    return path if path.startswith("model.") else "none"
