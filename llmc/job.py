"""A build before it begins: everything that its recipe names, found, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmc import machine
from llmc.budget import BudgetProblem, with_rules
from llmc.calibration_recipe import public_path
from llmc.contracts.progress import Progress
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import layout
from llmc.convert.formats.gptq import GPTQ
from llmc.convert.other_folders import names_in, require_tokenizer
from llmc.convert.quantized_weight import QuantSpec
from llmc.convert.targets import target
from llmc.convert.tensor_names import TensorName
from llmc.convert.tokenizer_files import TOKENIZER, MadeTokenizer
from llmc.default_rules import rules_of
from llmc.default_targets import with_possible_targets
from llmc.made_tokenizer import completed, made_tokenizer
from llmc.output import OutputFolder
from llmc.output_path import output_path, refuse_overlap
from llmc.planning import Plan
from llmc.planning import plan as plan_checkpoint
from llmc.quant.assign import Rule, assign
from llmc.quant.layer_calibration import calibration_dtype
from llmc.quant.layerwise import QuantizeOptions
from llmc.quant.prune import Pruning
from llmc.quant.schemes import scheme
from llmc.recipe import Recipe, RecipeLike, load_recipe
from llmc.runtime.tokenizer import Tokenizer
from llmc.sensitivity import found_record, planned, with_measurement
from llmc.source import ModelSource, hash_files, locate, locate_headers
from llmc.source_files import SourceFiles
from llmc.stages import code_version, key_of, module_version, versions
from llmc.text import Texts, read_texts
from llmc.text_sources import require_texts

# Packages whose version may change the bytes of a stage's result.
_QUANTIZE_PACKAGES = ("torch", "numpy")
_TARGET_PACKAGES = ("onnx", "onnx_ir", "ml_dtypes", "triton", "tensorrt-rtx-cu13", "tensorrt-cu13", "gguf")
_AFTER_QUANTIZING = ("graph/", "targets/", "engines/", "kernels/")  # of convert
_CHECK_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tokenizers", "numpy")
_DESCRIBE_PACKAGES = ("in-toto-attestation", "cyclonedx-python-lib")  # write provenance and bill of materials
ALL_PACKAGES = tuple(dict.fromkeys((*_QUANTIZE_PACKAGES, *_TARGET_PACKAGES, *_CHECK_PACKAGES, *_DESCRIBE_PACKAGES)))


@dataclass(frozen=True)
class Limits:
    """Bytes that a build may take; None: what there is. gpu_memory: None: the GPU is left alone."""

    memory: int | None = None
    gpu_memory: int | None = None


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names found, read and checked; nothing is written yet."""

    asked: Recipe  # as it was given
    recipe: Recipe  # where that has a budget: with rules by which it could be spent
    problem: BudgetProblem | None  # what a budget decides about
    source: ModelSource
    checkpoint: Checkpoint
    rules: list[Rule]
    tokenizer: Tokenizer
    texts: Texts
    source_files: dict[str, str]  # name → sha256
    plan: Plan
    limits: Limits
    files: SourceFiles
    made_tokenizer: MadeTokenizer | None  # None: the model has a tokenizer.json
    output: Path

    @property
    def pruning(self) -> Pruning | None:
        return Pruning(self.recipe.prune.keep, self.recipe.prune.method) if self.recipe.prune else None

    @property
    def options(self) -> QuantizeOptions:
        recipe = self.recipe
        device = torch.device("cpu" if self.limits.gpu_memory is None else "cuda")
        fp8_cache = recipe.kv_cache == "fp8"
        hessian_memory, experts = self.plan.hessian_memory, recipe.calibration.experts
        negative = all(target(name).takes_negative_scales for name in self.targets)
        return QuantizeOptions(hessian_memory, experts, recipe.layout, fp8_cache, device, negative)

    def rules_at(self, path: str) -> list[Rule]:
        """The rules by which modules within `path`, as graphs name their nodes, are quantized."""
        found = assign(self.checkpoint, self.rules)
        inside = [each.rule for module, each in found.items() if f"{module}.".startswith(f"{path}.")]
        return [rule for rule in dict.fromkeys(inside) if rule is not None]

    @property
    def targets(self) -> dict[str, dict[str, Any]]:
        return {name: options or {} for entry in self.recipe.targets for name, options in entry.items()}

    def fingerprint(self) -> dict[str, Any]:
        """What decides how the model is quantized, by names that a user knows it by."""
        return {
            "model": key_of(self.source_files),
            "quantize": self._budgeted() if self.problem else [vars(rule) for rule in self.rules],
            "prune": self.pruning and vars(self.pruning),
            "calibration and check text": self.texts.key(),
            "calibration.experts": self.recipe.calibration.experts,
            "kv_cache": self.recipe.kv_cache,
            "layout": self.recipe.layout,
            "negative scales, by targets": self.options.negative_scales,
            "device": [self.options.device.type, str(calibration_dtype(self.options.device))],
            "version of llmc": [
                code_version("convert", without=_AFTER_QUANTIZING),
                code_version("quant"),
                code_version("contracts"),
            ],
            "versions of python, torch or numpy": versions("python", *_QUANTIZE_PACKAGES),
        }

    def _budgeted(self) -> Any:
        """What decides the rules of a recipe with a budget, before they are known."""
        assert self.problem is not None
        modules = "budget", "candidates", "explicit_rules", "scheme_options", "sensitivity"
        code = [module_version(f"llmc.{name}") for name in modules]
        groups = [group.to_json() for group in self.problem.groups]
        return [[*(self.asked.budget or ())], self.problem.budget, key_of(groups), code]

    def with_rules(self, rules: Sequence[Rule]) -> Job:
        """The same, once it is known how the budget is spent."""
        recipe = with_rules(self.asked, rules)
        limits = self.limits
        plan = plan_checkpoint(self.checkpoint, recipe, self.output, limits.memory, limits.gpu_memory)
        return replace(self, recipe=recipe, rules=[*rules], plan=plan)

    def keys(self) -> dict[str, str]:
        """The key of every stage, under "work" that of the quantized model and under "build" that of the whole: all are
        known before any work is done. A stage's key is of what it reads; gates are judged afterwards.
        """
        work = key_of(self.fingerprint())
        keys = {"work": work, "quantize": key_of(work, module_version("llmc.manifest"))}
        if self.problem is not None:
            keys["sensitivity"] = key_of(work, "sensitivity", module_version("llmc.contracts.manifest"))
        code = [code_version("convert"), code_version("runtime.plugins")]
        for name, options in self.targets.items():
            keys[name] = key_of(work, name, options, code, versions(*_TARGET_PACKAGES))
        measured = [code_version("runtime"), module_version("llmc.measure")]
        keys["check"] = key_of(work, keys.get("onnxruntime"), measured, versions(*_CHECK_PACKAGES))
        described = [code_version("llmc"), code_version("page"), versions(*_DESCRIBE_PACKAGES)]
        keys["build"] = key_of(keys, self.asked.public(), self.source.id, *described)
        return keys


def plan(
    recipe: RecipeLike,
    output: Path | str | None = None,
    *,
    memory: int | None = None,
    gpu_memory: int | None = None,
    model: str | None = None,
) -> Plan:
    """Return what a build would take and give; read and download no weight and no text.

    Args:
        recipe: a recipe, or a model for the default one: see `llmc.build`
        output: where the artifact would go; default: build/NAME
        memory: bytes that the build may take; None: what there is
        gpu_memory: bytes of a GPU that is to do the work; None: the GPU is left alone
        model: what the recipe is used for instead of its own model

    Raises:
        InputError: for a recipe that does not fit the model
    """
    recipe, base = load_recipe(recipe, model)
    place = _output(recipe, output)
    require_texts(recipe.calibration, recipe.check, base)
    with locate_headers(recipe.model, base) as source:
        if output is not None:  # what a build into build/NAME would say is no reason not to plan
            refuse_overlap(OutputFolder(place).path, source.path)
        checkpoint = Checkpoint.open(source.path, headers_only=True)
        _require_tokenizer(source)
        made_tokenizer(source.path, checkpoint.spec.vocab_size)
        recipe = with_possible_targets(recipe, checkpoint.spec)
        shares = recipe.calibration.shares(checkpoint.spec.max_position_embeddings)
        told = [f"calibration: {tokens:,} tokens of {public_path(text)}" for text, tokens in shares]
        spent = None
        if recipe.budget is not None:
            problem = BudgetProblem.of(checkpoint, recipe)
            recipe, spent = planned(problem, found_record(place.parent, source.id, problem))
        found = plan_checkpoint(checkpoint, recipe, place, memory, gpu_memory)
        found = replace(found, notes=[*found.notes, *(told if len(told) > 1 else [])], budget=spent)
        if spent is None or spent.measured:
            return found
        return with_measurement(found, checkpoint.spec, recipe.calibration)


def prepare(
    given: RecipeLike, output: Path | str | None, limits: Limits, progress: Progress, model: str | None = None
) -> tuple[Job, OutputFolder]:
    """Finds and checks everything a build needs; InputError or MachineError before anything is written."""
    recipe, base = load_recipe(given, model)
    place = OutputFolder(_output(recipe, output))
    require_texts(recipe.calibration, recipe.check, base)
    source = locate(recipe.model, base)
    refuse_overlap(place.path, source.path)
    files = SourceFiles(source.path)
    checkpoint = Checkpoint.open(source.path)
    _require_tokenizer(source)
    made = made_tokenizer(checkpoint.path, checkpoint.spec.vocab_size)
    if made is not None:
        progress.line(f"{TOKENIZER} is made from {made.source}: {made.texts:,} texts have the same tokens in both")
    if checkpoint.config.get("tie_word_embeddings") and not checkpoint.spec.tie_word_embeddings:
        progress.line("tie_word_embeddings is true, but lm_head.weight is not the embedding: both are kept")
    if limits.gpu_memory is not None:
        machine.require_gpu()
    asked = with_possible_targets(recipe, checkpoint.spec)
    problem, recipe = _guessed(checkpoint, asked)
    plan = plan_checkpoint(checkpoint, recipe, place.path, limits.memory, limits.gpu_memory)
    for note in plan.notes:
        progress.line(note)
    if problem is None:
        warn(recipe.layout, plan, checkpoint, progress)
    else:  # of what a guess gives, nobody has to be warned
        plan = with_measurement(plan, checkpoint.spec, recipe.calibration)
    tokenizer = Tokenizer(completed(checkpoint.path, made), checkpoint.spec.vocab_size, recipe.add_bos)
    texts = read_texts(recipe.calibration, recipe.check, checkpoint, base, tokenizer)
    texts.require(limits.memory)
    for line in texts.lines():
        progress.line(line)
    with progress.stage("read the checkpoint"):
        hashes = hash_files(
            checkpoint.path,
            checkpoint.files(),
            lambda done, total: progress("sha256", done / total if total else 1.0),
            checkpoint.used(),
        )
    files.hashed(hashes)
    rules = rules_of(recipe, checkpoint.spec).rules
    job = Job(
        asked, recipe, problem, source, checkpoint, rules, tokenizer, texts, hashes, plan, limits, files, made,
        place.path,
    )  # fmt: skip
    return job, place


def _guessed(checkpoint: Checkpoint, recipe: Recipe) -> tuple[BudgetProblem | None, Recipe]:
    """What a recipe's budget decides about, and the recipe with rules by which it might be spent; without a budget, the
    recipe itself. InputError for a budget that nothing keeps.
    """
    if recipe.budget is None:
        return None, recipe
    problem = BudgetProblem.of(checkpoint, recipe)
    return problem, problem.solve(problem.guess).recipe


def warn(layout_name: str, planned: Plan, checkpoint: Checkpoint, progress: Progress) -> None:
    """Of what other programs will make of the result."""
    experts = planned.roles.get("experts")
    plain = experts is not None and sum(planned.schemes.get("experts", {}).values()) < experts.after.parameters
    specs = {role: [scheme(name).spec for name in schemes] for role, schemes in planned.schemes.items()}
    if experts is not None and not specs.get("experts"):  # they stay as they are
        specs["experts"] = [kind for kind in _kinds_of_experts(checkpoint) if layout(layout_name).takes(kind)]
        plain = not specs["experts"]
    known = layout(layout_name)
    if obstacle := checkpoint.family.obstacle(known.one_by_one(specs)) or known.obstacle(specs, plain):
        progress.line(f"transformers will not load the result: {obstacle}")


def _kinds_of_experts(checkpoint: Checkpoint) -> set[QuantSpec]:
    """How the first routed expert of each layer is stored, as far as headers tell."""
    kinds = set()
    for name in checkpoint.names():
        found = checkpoint.format_of(name) if TensorName.parse(name).module.expert == 0 else None
        if found is not None and not isinstance(found, GPTQ):
            kind = found.kind(checkpoint.parts(name))
            kinds.add(kind._replace(block=(0, 0)) if kind.block == checkpoint.shape(name) else kind)
    return kinds


def _require_tokenizer(source: ModelSource) -> None:
    on_hub = source.revision is not None
    require_tokenizer(source.id if on_hub else str(source.path), names_in(source.path), on_hub)


def _output(recipe: Recipe, output: Path | str | None) -> Path:
    return output_path(str(recipe.name), None if output is None else Path(output))
