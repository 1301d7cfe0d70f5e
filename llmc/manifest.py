"""llmc.json: everything that is known about an artifact, and nothing of when or where it was made."""

from __future__ import annotations

from pathlib import Path

from llmc import __version__
from llmc.contracts.fidelity import BuiltRecord
from llmc.contracts.layer_record import ModuleReport, RoleCounts
from llmc.contracts.manifest import (
    BudgetRecord,
    Checks,
    File,
    Manifest,
    ModelRecord,
    Pruned,
    QuantizedModel,
    QuantizedRole,
    RecipeRecord,
    Sizes,
    SourceRecord,
    TargetRecord,
    TensorRecord,
    TokenizerRecord,
)
from llmc.contracts.part import Nothing
from llmc.contracts.run_manifest import FORMAT_VERSION
from llmc.convert.checkpoint import Checkpoint
from llmc.job import ALL_PACKAGES, Job
from llmc.quant.durable import describe
from llmc.quant.result import QuantizeResult
from llmc.runtime.artifact import MANIFEST
from llmc.runtime.spoken_to import spoken_to
from llmc.sizes import sizes_by_role
from llmc.stages import versions
from llmc.torch_checks import torch_checks


def describe_quantized(job: Job, artifact: Checkpoint, result: QuantizeResult) -> QuantizedModel:
    """What the manifest says of the pass over the model."""
    return QuantizedModel(
        quantized=_roles(artifact, result),
        tensors={module: _tensor(artifact, module, report) for module, report in result.modules.items()},
        pruned=_pruned(job, result),
        layer_errors=result.layer_errors,
        layers=result.layers,
        torch_checks=_checks(job, result),
        texts=job.texts.record(),
    )


def _checks(job: Job, result: QuantizeResult) -> Checks | Nothing:
    """What a backend would be measured by, of the answers that the pass had in its hands."""
    if result.answers is None:
        return Nothing()
    return torch_checks(result.answers, job.texts.check, job.tokenizer.id_to_token, job.texts.check_read)


def build_manifest(
    job: Job,
    artifact: Checkpoint,
    quantized: QuantizedModel,
    targets: dict[str, TargetRecord],
    keys: dict[str, str],
    spent: BudgetRecord | None = None,
) -> Manifest:
    """The manifest without `files` and `checks`."""
    made = [
        *(["sensitivity"] if spent else []),
        "quantize",
        *(name for name, target in targets.items() if target.skipped is None),
    ]
    spec = artifact.spec
    recipe = job.recipe.public() | {"quantize": [vars(rule) for rule in job.rules]}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        llmc_version=__version__,
        key=keys["build"],
        stages={name: keys[name] for name in [*made, *(["check"] if "onnxruntime" in targets else [])]},
        name=job.recipe.name or "",
        recipe=RecipeRecord.model_validate(recipe),
        source=_source(job),
        texts=job.texts.record() if job.texts.is_written else quantized.texts,
        model=ModelRecord(
            family=spec.family,
            num_layers=spec.num_layers,
            num_mtp_layers=spec.num_mtp_layers,
            vocab_size=spec.vocab_size,
            max_position_embeddings=spec.max_position_embeddings,
            original_context=spec.original_context,
            bos_token_id=spec.bos_token_id,
            eos_token_ids=list(job.tokenizer.eos_token_ids),
            images=artifact.vision.images if artifact.vision else None,
        ),
        tokenizer=_tokenizer(job),
        quantized=quantized.quantized,
        tensors=quantized.tensors,
        pruned=quantized.pruned,
        layer_errors=quantized.layer_errors,
        layers=quantized.layers,
        sizes=Sizes(original=job.checkpoint.nbytes(), artifact=artifact.nbytes()),
        targets=targets,
        checks=Nothing(),
        torch_checks=quantized.torch_checks,
        built=BuiltRecord(digests=spoken_to(job.tokenizer)),
        notes=job.plan.notes,
        versions=versions(*ALL_PACKAGES),
        files={},
    )
    return manifest if spent is None else manifest.model_copy(update={"budget": spent})


def _source(job: Job) -> SourceRecord:
    source = job.source
    named = {"license_name": source.license.name, "license_link": source.license.link}
    record = SourceRecord(id=source.id, revision=source.revision, license=source.license.id, files=job.source_files)
    return record.model_copy(update={key: value for key, value in named.items() if value is not None})


def _tokenizer(job: Job) -> TokenizerRecord:
    record, made = job.tokenizer.record(), job.made_tokenizer
    return record if made is None else record.model_copy(update={"made_from": made.source})


def _roles(artifact: Checkpoint, result: QuantizeResult) -> dict[str, QuantizedRole]:
    """Role → parameters and bytes in the artifact, and how many were to be and are quantized, in which schemes."""
    schemes: dict[str, set[str]] = {}
    for module, report in result.modules.items():
        if report.scheme is not None:
            schemes.setdefault(artifact.role(f"{module}.weight"), set()).add(report.scheme)
    roles = {}
    for role, found in sizes_by_role(artifact).items():
        counts = result.roles.get(role, RoleCounts())
        roles[role] = QuantizedRole(
            parameters=found.parameters,
            bytes=found.bytes,
            expected=counts.expected,
            quantized=counts.quantized,
            schemes=sorted(schemes.get(role, ())),
        )
    return roles


def _tensor(artifact: Checkpoint, module: str, report: ModuleReport) -> TensorRecord:
    error, nearest = (
        None if found is None else float(f"{found:.4g}") for found in (report.error, report.nearest_error)
    )
    known = {"error": error, "nearest_error": nearest, "tokens": report.tokens, "fallback": report.fallback}
    tensor = TensorRecord(role=artifact.role(f"{module}.weight"), scheme=report.scheme or "", method=report.method)
    return tensor.model_copy(update={name: value for name, value in known.items() if value is not None})


def _pruned(job: Job, result: QuantizeResult) -> Pruned | Nothing:
    if not result.experts or job.pruning is None:
        return Nothing()
    before, after = job.plan.experts
    return Pruned(
        method=job.pruning.method,
        experts_before=before,
        experts_after=after,
        survivors={layer: experts.survivors for layer, experts in result.experts.items()},
        calibration_tokens={layer: experts.tokens for layer, experts in result.experts.items()},
        super_experts={layer: experts.super_experts for layer, experts in result.experts.items()},
    )


def hash_files_of(artifact: Path, known: dict[str, File] | None = None) -> dict[str, File]:
    """Relative path → sha256 and bytes of every file but the manifest; `known` ones are not read again."""
    files = dict(known or {})
    for path in sorted(artifact.rglob("*")):
        name = path.relative_to(artifact).as_posix()
        if path.is_file() and name != MANIFEST and name not in files:
            files[name] = describe(path, File)
    return files
