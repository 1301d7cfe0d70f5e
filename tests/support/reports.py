"""A report with everything that a report can have, whose strings are those of somebody who means harm."""

from __future__ import annotations

import math
from typing import Any

from llmc.contracts.against import AgainstRecord
from llmc.contracts.audit import AuditRecord
from llmc.contracts.manifest import Manifest
from llmc.contracts.report import Report, SpeedRecord, WorstInText
from llmc.report import report_of
from llmc.runtime.spread import EDGES

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202eend'
_SHA = "0" * 64
_LONG = "unbreakable" * 30


def manifest(layers: int = 6, experts: int = 16, missed: bool = True, scale: float = 1.0) -> Manifest:
    """One of a model of so many layers and experts; `scale` is how much it diverges."""
    checks = _checks(missed, scale)
    gone = [1, experts - 2]
    shares = [1 + 0.6 * math.sin(1.7 * expert) for expert in range(experts)]
    routing = {
        "agreement": 0.9,
        "identical": 0.6,
        "load_original": shares,
        "load": [0.0 if expert in gone else share for expert, share in enumerate(shares)],
        "removed": gone,
        "expert_errors": [None if expert in gone else 0.1 for expert in range(experts)],
    }
    return Manifest.model_validate(
        {
            "format_version": 1,
            "llmc_version": "0.1.0",
            "name": f"a model {HOSTILE}",
            "recipe": {"name": "r", "model": HOSTILE, "check": {"text": HOSTILE, "tokens": 4096, "length": 512}},
            "source": {"id": f"org/{HOSTILE}", "revision": "c0ffee", "license": HOSTILE, "files": {HOSTILE: _SHA}},
            "texts": {"note": "calibration a, check b", "sha256": [_SHA, _SHA], "read": {"calibration": [_text()]}},
            "model": {
                "family": "deepseek_v3", "num_layers": layers, "num_mtp_layers": 1, "vocab_size": 4096,
                "max_position_embeddings": 4096, "eos_token_ids": [1],
            },
            "tokenizer": {"begins_with": [(0, HOSTILE)], "ends_with": [(1, "</s>")], "because": "tokenizer.json"},
            "budget": _budget(),
            "quantized": {
                "experts": {
                    "parameters": 10**9, "bytes": 6 * 10**8, "expected": 10**9, "quantized": 10**9,
                    "schemes": ["int3-g64", "int4-g64"],
                }
            },
            "tensors": {
                f"model.layers.{layer}.mlp.experts.{expert}.down_proj": {
                    "role": "experts", "scheme": "int4-g64", "method": "gptaq", "error": 1e-3 * (1 + layer + expert),
                    "fallback": HOSTILE,
                }
                for layer in range(layers)
                for expert in range(2)
            },
            "pruned": {
                "method": "reap", "experts_before": experts, "experts_after": experts - 2,
                "survivors": {
                    str(layer): [each for each in range(experts) if each not in gone] for layer in range(layers)
                },
                "calibration_tokens": {str(layer): [100] * experts for layer in range(layers)},
            },
            "layers": [
                {"layer": each, "error": 0.02 * each, "cosine": 1 - 0.01 * each, "routing": routing}
                for each in range(layers)
            ],
            "sizes": {"original": 2 * 10**9, "artifact": int(6 * 10**8 / scale)},
            "targets": {
                HOSTILE[:20]: {"files": {"main": "model.onnx"}, "weight_bytes": 5 * 10**8, "notes": [HOSTILE]}
            },
            "checks": checks,
            "torch_checks": checks | {"computed_by": "torch", "kl_kind": "exact", "gates": []},
            "notes": [HOSTILE, _LONG],
            "versions": {"numpy": "2", _LONG: _LONG},
            "files": {"reference.safetensors": {"sha256": _SHA, "bytes": 1}},
        }
    )  # fmt: skip


def rich_report(layers: int = 6, experts: int = 16, missed: bool = True) -> Report:
    """Return one of that manifest."""
    worst = [
        WorstInText(before=f"line\n{HOSTILE} " * 2, token=HOSTILE, kl=4.0 - each, p_original=0.9, p=0.1)
        for each in range(3)
    ]
    timing = {"batch": 1, "prompt_tokens": 32, "new_tokens": 64, "prefill": 900.0, "tokens_per_step": 1.0}
    speed = SpeedRecord.model_validate(
        {
            "backend": HOSTILE, "load_seconds": 1.0, "memory_loaded": 10**9, "memory_peak": 2 * 10**9,
            "cache_bytes_per_token": 1152,
            "timings": [timing | {"draft_tokens": each, "decode": 40.0 + 9 * each} for each in (0, 1)],
        }
    )  # fmt: skip
    made = manifest(layers, experts, missed)
    against = AgainstRecord(
        artifact=HOSTILE, original=HOSTILE, layout=HOSTILE, bytes=1, bytes_original=2, windows=16, length=512,
        checks=made.torch_checks, layers=made.layers, notes=[HOSTILE],
    )  # fmt: skip
    return report_of(made, worst, speed, audit_record(), against)


def audit_record(digest: str = _SHA) -> AuditRecord:
    """Return an audit of the artifact with this digest."""
    measure = {
        "samples": 400, "kind": "share", "better": "higher", "original": 0.61, "artifact": 0.58, "difference": -0.03,
        "low": -0.05, "high": -0.01, "confidence": 95, "method": "score", "bootstrap": [-0.05, -0.01], "gained": 4,
        "lost": 16, "p": 0.012,
    }  # fmt: skip
    length = measure | {"kind": "mean", "better": "neither", "method": "bootstrap", "low": -0.04, "high": 0.02}
    model = {"name": HOSTILE, "digest": digest, "runs_on": "onnxruntime"}
    measures = {"acc": measure, "length": length, HOSTILE: measure | {"p": None}}
    return AuditRecord.model_validate(
        {
            "format_version": 1, "llmc_version": "0.1.0", "harness": "0.4.10", "artifact": model, "original": model,
            "same_source": False, "limit": 400, "chat": False,
            "tasks": {HOSTILE: {"data": HOSTILE, "documents": _SHA, "samples": 400, "measures": measures}},
            "review": {
                "sheet": _SHA, "reviewers": ["a", HOSTILE], "items": 20, "p": 0.42, "kappa": 0.5,
                "labels": {"original": 19, "artifact": 6, "both": 11, "neither": 4},
                "decided": {"original": 9, "artifact": 5},
            },
        }
    )  # fmt: skip


def _text() -> dict[str, Any]:
    return {"text": HOSTILE, "available": 9, "documents": 3, "tokens": 1024, "cut": 1, "dropped": 0.01}


def _budget() -> dict[str, Any]:
    curve = [{"bytes": 10**8 * each, "bits": float(each), "kl": 4.0 ** (2 - each)} for each in range(2, 8)]
    return {
        "asked": "size: 600MB", "bytes": 6 * 10**8, "bits": 3.5, "predicted_kl": 0.03, "tokens": 8192,
        "roles": {"experts": {"int4-g64": 7 * 10**8, "int3-g64": 3 * 10**8}}, "role_bits": {"experts": 3.7},
        "curve": curve,
    }  # fmt: skip


def _checks(missed: bool, scale: float) -> dict[str, Any]:
    counts = [round(900 * math.exp(-(((step - 15) / 4) ** 2))) for step in range(len(EDGES) + 1)]
    kl = [scale * (0.04 + 0.01 * math.sin(each)) for each in range(16)]
    return {
        "tokens": sum(counts), "ppl_original": 12.0, "ppl_original_stderr": 0.5, "ppl_stderr": 0.5,
        "ppl": 12.0 * math.exp(sum(kl) / len(kl)), "ppl_increase_stderr": 0.004, "kl_kind": "sampled",
        "kl_mean": sum(kl) / len(kl), "kl_mean_stderr": 0.002,
        "kl_median": 0.015, "kl_p99": 0.4, "kl_p999": 1.5, "kl_max": 4.0, "kl_above_0_1": 0.1, "kl_above_1": 0.002,
        "kl_above_0_1_stderr": 0.001, "kl_above_1_stderr": 0.0001, "top1": 0.89, "top1_stderr": 0.003,
        "p_change": -0.01, "p_change_stderr": 0.001, "p_change_rms": 0.06, "p_change_rms_stderr": 0.006,
        "kl_by_position": [
            {"first": 2**each, "last": 2 ** (each + 1) - 1, "kl_mean": 0.04, "kl_mean_stderr": 0.004}
            for each in range(15)
        ],
        "kl_by_kind": [{"kind": kind, "tokens": 99, "kl_mean": 0.05} for kind in ("digits", "word start", "space")],
        "kl_by_source": [
            {
                "text": HOSTILE, "windows": 8, "kl_mean": 0.04 + 0.01 * each, "kl_mean_stderr": 0.003,
                "ppl_original": 12.0, "ppl": 12.4, "ppl_increase_stderr": 0.004,
            }
            for each in range(2)
        ],
        "worst": [{"window": 0, "position": 1, "kl": 4.0, "p_original": 0.9, "p": 0.1}],
        "kl_histogram": {"edges": list(EDGES), "counts": counts},
        "by_window": {
            "kl": kl, "surprise_original": [2.5] * 16, "surprise": [2.5 + each for each in kl], "top1": [0.89] * 16,
        },
        "gates": [
            {"name": "kl_mean", "limit": 0.05, "value": 0.04, "passed": True, "confidence": 95, "end": 0.045},
            {"name": "top1", "limit": 0.9, "value": 0.89, "passed": not missed},
        ],
        "mtp_acceptance": 0.8,
    }  # fmt: skip
