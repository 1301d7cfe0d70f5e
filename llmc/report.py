"""The numbers of an artifact's report, out of its manifest."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmc.contracts.against import AgainstRecord
from llmc.contracts.audit import AuditRecord
from llmc.contracts.layer_errors import LayerErrors, rounded
from llmc.contracts.manifest import Checks, Manifest, TargetRecord, TensorRecord
from llmc.contracts.report import (
    REPORT_VERSION,
    ExpertsOfLayer,
    LayerSummary,
    Report,
    SpeedRecord,
    Treatment,
    WorstInText,
)
from llmc.runtime.artifact import BILL, CARD, PROVENANCE, REFERENCE, REPORT, REPORT_PAGE

_LAYER = re.compile(r"model\.layers\.([0-9]{1,6})\.")
_EXPERT = re.compile(r"model\.layers\.([0-9]{1,6})\..*\bexperts\.([0-9]{1,6})\.")
_ABOUT = (CARD, REPORT, REPORT_PAGE, PROVENANCE, BILL)  # files that are made of the manifest
_NUMBER = re.compile(r"[0-9]{1,6}")


def report_of(
    manifest: Manifest,
    worst: Sequence[WorstInText] = (),
    speed: SpeedRecord | None = None,
    audit: AuditRecord | None = None,
    against: AgainstRecord | None = None,
) -> Report:
    """Return the report of an artifact; equal manifests have equal ones.

    Args:
        worst: The tokens of the largest divergence, as `worst_in_text` finds them.
        speed: What was benchmarked, if anything was.
        audit: What `llmc eval` found, if it was asked.
        against: What `llmc check --against` found, if it was asked: its layers take the place of the build's.
    """
    pruned, checks, torch_checks = manifest.pruned or None, manifest.checks or None, manifest.torch_checks or None
    fallbacks = {name: tensor.fallback for name, tensor in manifest.tensors.items() if tensor.fallback}
    measured = against.layers if against else manifest.layers
    optional: dict[str, Any] = {
        "tokenizer": manifest.tokenizer,
        "budget": manifest.budget,
        "pruned": pruned,
        "checks": checks,
        "torch_checks": torch_checks,
        "reference": manifest.reference,
        "fallbacks": fallbacks or None,
        "speed": speed,
        "audit": audit,
        "against": against,
    }
    return Report(
        format_version=REPORT_VERSION,
        llmc_version=manifest.llmc_version,
        name=manifest.name,
        verdict=_verdict(checks),
        source=manifest.source,
        model=manifest.model,
        recipe=manifest.recipe,
        texts=manifest.texts,
        published_text=REFERENCE in manifest.files,
        notes=manifest.notes,
        sizes=manifest.sizes,
        quantized=manifest.quantized,
        treatments=_treatments(manifest.tensors.values()),
        layers=list(_layers(manifest, measured)),
        experts=_experts(manifest, measured),
        targets={name: _without_details(each) for name, each in manifest.targets.items()},
        worst=list(worst),
        versions=manifest.versions,
        stages=manifest.stages,
        files={name: file for name, file in manifest.files.items() if name not in _ABOUT},
        **{name: value for name, value in optional.items() if value is not None},
    )


def worst_in_text(checks: Checks | None, ids: Any, decode: Callable[[Sequence[int]], str]) -> list[WorstInText]:
    """Return the tokens of the largest divergence, in text.

    Args:
        ids: The check text [N, P + 1].
        decode: Of the tokenizer.
    """
    from llmc.runtime.where import WorstToken, in_text

    found = []
    for each in checks.worst if checks else ():
        if each.window < len(ids) and each.position < len(ids[each.window]):
            before, token = in_text(WorstToken(**dict(each)), ids, decode)
            found.append(WorstInText(before=before, token=token, kl=each.kl, p_original=each.p_original, p=each.p))
    return found


def _verdict(checks: Checks | None) -> Any:
    if checks is None:
        return "not measured"
    return "missed" if checks.missed else "passed" if checks.gates else "no limits"


def _treatments(tensors: Iterable[TensorRecord]) -> list[Treatment]:
    errors: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for tensor in tensors:
        errors[tensor.role, tensor.scheme, tensor.method].append(tensor.error or 0.0)
    return [
        Treatment(
            role=role,
            scheme=scheme,
            method=method,
            modules=len(found),
            error_median=rounded(statistics.median(found)),
            error_largest=max(found),
        )
        for (role, scheme, method), found in sorted(errors.items())
    ]


def _layers(manifest: Manifest, measured: Sequence[LayerErrors]) -> Iterable[LayerSummary]:
    modules: dict[int, dict[str, float]] = defaultdict(dict)
    for name, tensor in manifest.tensors.items():
        if found := _LAYER.match(f"{name}."):
            modules[int(found[1])][name] = tensor.error or 0.0
    distances = dict(enumerate(manifest.layer_errors)) | {each.layer: each.error for each in measured}
    cosines = {each.layer: each.cosine for each in measured}
    for layer in sorted({*modules, *distances}):
        mine = modules.get(layer, {})
        told: dict[str, Any] = {"error": rounded(distances[layer])} if layer in distances else {}
        if layer in cosines:
            told["cosine"] = cosines[layer]
        if mine:
            largest = max(mine, key=lambda name: mine[name])
            told |= {"module_error_median": rounded(statistics.median(mine.values()))}
            told |= {"module_error_largest": mine[largest], "largest_in": largest}
        yield LayerSummary(layer=layer, modules=len(mine), **told)


def _experts(manifest: Manifest, measured: Sequence[LayerErrors]) -> list[ExpertsOfLayer]:
    """By what the check text's tokens chose, or the calibration text's where only they were counted."""
    found: dict[int, ExpertsOfLayer] = {}
    pruned = manifest.pruned or None
    for name, tokens in (pruned.calibration_tokens if pruned else _loads(manifest)).items():
        if not _NUMBER.fullmatch(name):
            continue
        kept = pruned.survivors.get(name) if pruned else None
        removed = [] if kept is None else sorted({*range(len(tokens))} - {*kept})
        layer = int(name)
        found[layer] = ExpertsOfLayer(
            layer=layer, measured_on="calibration", load_original=_shares(tokens), removed=removed
        )
    for each in measured:
        if routing := each.routing:
            found[each.layer] = ExpertsOfLayer(
                layer=each.layer,
                measured_on="check",
                load_original=_shares(routing.load_original),
                load=_shares(routing.load),
                removed=routing.removed,
                agreement=routing.agreement,
                errors=routing.expert_errors,
            )
    return [found[layer] for layer in sorted(found)]


def _loads(manifest: Manifest) -> dict[str, list[int]]:
    """Layer → calibration tokens by expert, of a model that was not pruned, where all its experts say so."""
    seen: dict[str, dict[int, int]] = defaultdict(dict)
    for name, tensor in manifest.tensors.items():
        if tensor.tokens is not None and (found := _EXPERT.match(f"{name}.")):
            seen[found[1]][int(found[2])] = tensor.tokens
    return {layer: [by[each] for each in range(len(by))] for layer, by in seen.items() if {*by} == {*range(len(by))}}


def _shares(loads: Sequence[float]) -> list[float]:
    total = sum(loads)
    return [rounded(each / total) if total else 0.0 for each in loads]


def _without_details(target: TargetRecord) -> TargetRecord:
    return TargetRecord(**{name: getattr(target, name) for name in target.model_fields_set - {"details"}})
