"""What a manifest says, as rows for the terminal and for the model card."""

from __future__ import annotations

from typing import Any

from llmc.progress import size
from llmc.runtime.artifact import REFERENCE


def rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, how it came out), in reading order."""
    source, model, sizes, checks = (manifest[key] for key in ("source", "model", "sizes", "checks"))
    revision = f" @ {source['revision'][:12]}" if source["revision"] else ""
    share = sizes["artifact"] / sizes["original"]
    mtp = f" + {model['num_mtp_layers']} MTP" if model["num_mtp_layers"] else ""
    result = [
        ("source", f"{source['id']}{revision} ({model['family']}, {model['num_layers']}{mtp} layers)"),
        ("weights", f"{size(sizes['original'])} → {size(sizes['artifact'])} ({share:.0%})"),
    ]
    if pruned := manifest["pruned"]:
        result.append(
            ("experts per layer", f"{pruned['experts_before']} → {pruned['experts_after']} ({pruned['method']})")
        )
    for role, counts in manifest["quantized"].items():
        if counts["quantized"]:
            result.append((role, f"{counts['quantized']:,} parameters as {', '.join(counts['schemes'])}"))
    if manifest["recipe"].get("kv_cache") == "fp8":
        result.append(("attention cache", "FP8, one calibrated scale per layer"))
    result += tokenizer_rows(manifest)
    if checks:
        result += check_rows(checks)
    told = f"its tokens are in {REFERENCE}" if REFERENCE in manifest["files"] else "is not in the artifact"
    result.append(("check text", told))
    for name, target in manifest["targets"].items():
        result.append((f"target {name}", target_line(target)))
    return result


def tokenizer_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """With which tokens texts begin and answers end; nothing of an artifact whose llmc did not write it down."""
    if not (told := manifest.get("tokenizer")):
        return []
    first, last = (", ".join(_token(*each) for each in told[key]) for key in ("begins_with", "ends_with"))
    never = "nothing: the model names no end token, so that they go on to max_new_tokens or the end of the context"
    return [
        ("texts begin with", f"{first or 'no token of their own'} ({told['because']})"),
        ("answers end with", last or never),
    ]


def _token(number: int, text: str | None) -> str:
    """`</s>` (2); what could steer a terminal is written out."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text or "?")
    return f"`{shown}` ({number})"


def check_rows(checks: dict[str, Any]) -> list[tuple[str, str]]:
    """What a comparison with the original found."""
    change = checks["ppl"] / checks["ppl_original"] - 1
    kl = "mean {kl_mean:.4f}, median {kl_median:.4f}, 99 % {kl_p99:.3f}, max {kl_max:.2f}"
    result = [
        ("perplexity", f"{_with_error(checks, 'ppl_original')} → {_with_error(checks, 'ppl')} ({change:+.2%})"),
        ("KL divergence", kl.format(**checks)),
        ("top-1 agreement", f"{checks['top1']:.2%} of {checks['tokens']:,} tokens"),
    ]
    if "mtp_acceptance" in checks:
        result.append(("MTP acceptance", f"{checks['mtp_acceptance']:.1%} of drafts, greedy"))
    return result + [(f"gate {gate['name']}", gate_line(gate)) for gate in checks["gates"]]


def target_line(target: dict[str, Any]) -> str:
    if reason := target.get("skipped"):
        return f"skipped: {reason}"
    return f"{size(target.get('file_bytes', 0))} in {len(target['files'])} files"


def gate_line(gate: dict[str, Any]) -> str:
    """`passed: 0.013 (limit 0.02)`"""
    if gate["passed"]:
        return f"passed: {gate['value']:.4g} (limit {gate['limit']:g})"
    return f"MISSED by {abs(gate['value'] - gate['limit']):.3g}: {gate['value']:.4g} (limit {gate['limit']:g})"


def _with_error(checks: dict[str, Any], name: str) -> str:
    return f"{checks[name]:.3f} ± {checks[name + '_stderr']:.3f}"
