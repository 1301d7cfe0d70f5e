"""llmc.json: everything that is known about an artifact, and nothing of when or where it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc import __version__
from llmc.convert.checkpoint import Checkpoint
from llmc.job import ALL_PACKAGES, Job
from llmc.output import MANIFEST
from llmc.quant.durable import describe
from llmc.runtime.artifact import FORMAT_VERSION
from llmc.sizes import sizes_by_role
from llmc.stages import versions

# What is written of a quantized model, whatever is made of it.
QUANTIZED = ("quantized", "tensors", "pruned", "layer_errors")


def describe_quantized(job: Job, artifact: Checkpoint, quantized: dict[str, Any]) -> dict[str, Any]:
    """The parts QUANTIZED of the manifest; `quantized` is what the pass reported."""
    return {
        "quantized": _roles(artifact, quantized),
        "tensors": _tensors(artifact, quantized["modules"]),
        "pruned": _pruned(job, quantized),
        "layer_errors": quantized["layer_errors"],
    }


def build_manifest(
    job: Job, artifact: Checkpoint, quantized: dict[str, Any], targets: dict[str, Any], keys: dict[str, str]
) -> dict[str, Any]:
    """The manifest without `files` and `checks`; `quantized` are its parts of that name."""
    made = ["quantize", *(name for name, target in targets.items() if "skipped" not in target)]
    spec = artifact.spec
    return {
        "format_version": FORMAT_VERSION,
        "llmc_version": __version__,
        "key": keys["build"],
        "stages": {name: keys[name] for name in [*made, *(["check"] if "onnxruntime" in targets else [])]},
        "name": job.recipe.name,
        "recipe": job.recipe.public() | {"quantize": [vars(rule) for rule in job.rules]},
        "source": {
            "id": job.source.id,
            "revision": job.source.revision,
            "license": job.source.license,
            "files": job.source_files,
        },
        "texts": {"note": job.texts.note, "sha256": job.texts.key()},
        "model": {
            "family": spec.family,
            "num_layers": spec.num_layers,
            "num_mtp_layers": spec.num_mtp_layers,
            "vocab_size": spec.vocab_size,
            "max_position_embeddings": spec.max_position_embeddings,
            "bos_token_id": spec.bos_token_id,
            "eos_token_ids": list(job.tokenizer.eos_token_ids),
        },
        "tokenizer": job.tokenizer.to_json(),
        **{part: quantized[part] for part in QUANTIZED},
        "sizes": {"original": job.checkpoint.nbytes(), "artifact": artifact.nbytes()},
        "targets": targets,
        "checks": {},
        "versions": versions(*ALL_PACKAGES),
    }


def _roles(artifact: Checkpoint, quantized: dict[str, Any]) -> dict[str, Any]:
    """Role → parameters and bytes in the artifact, and how many were to be and are quantized, in which schemes."""
    schemes: dict[str, set[str]] = {}
    for module, report in quantized["modules"].items():
        schemes.setdefault(artifact.role(f"{module}.weight"), set()).add(report["scheme"])
    none = {"expected": 0, "quantized": 0}
    return {
        role: {"parameters": found.parameters, "bytes": found.bytes}
        | {key: quantized["roles"].get(role, none)[key] for key in none}
        | {"schemes": sorted(schemes.get(role, ()))}
        for role, found in sizes_by_role(artifact).items()
    }


def _tensors(artifact: Checkpoint, modules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Module → role, scheme, method, relative squared error, tokens seen, fallback taken."""
    tensors = {}
    for module, report in modules.items():
        entry = {"role": artifact.role(f"{module}.weight"), "scheme": report["scheme"], "method": report["method"]}
        error = report.get("output_error", report.get("weight_error"))
        if error is not None:
            entry["error"] = float(f"{error:.4g}")
        tensors[module] = entry | {key: report[key] for key in ("tokens", "fallback") if key in report}
    return tensors


def _pruned(job: Job, quantized: dict[str, Any]) -> dict[str, Any]:
    if not quantized["survivors"] or job.pruning is None:
        return {}
    before, after = job.plan.experts
    return {
        "method": job.pruning.method,
        "experts_before": before,
        "experts_after": after,
        "survivors": quantized["survivors"],
        "calibration_tokens": quantized["expert_tokens"],
    }


def hash_files_of(artifact: Path, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Relative path → sha256 and bytes of every file but the manifest; `known` ones are not read again."""
    files = dict(known or {})
    for path in sorted(artifact.rglob("*")):
        name = path.relative_to(artifact).as_posix()
        if path.is_file() and name != MANIFEST and name not in files:
            files[name] = describe(path)
    return files
