"""What a report says, as rows for the terminal and for the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from llmc.budget_tables import spent_rows
from llmc.contracts.fidelity import AsBuiltRecord, RuntimeRecord
from llmc.contracts.manifest import Checks, GateRecord, TargetRecord, TokenizerRecord
from llmc.contracts.report import Report
from llmc.progress import size
from llmc.runtime.artifact import REFERENCE


def rows(report: Report) -> list[tuple[str, str]]:
    """(what, how it came out), in reading order."""
    source, model, sizes = report.source, report.model, report.sizes
    revision = f" @ {source.revision[:12]}" if source.revision else ""
    mtp = f" + {model.num_mtp_layers} MTP" if model.num_mtp_layers else ""
    share = sizes.artifact / sizes.original
    result = [
        ("source", f"{source.id}{revision} ({model.family}, {model.num_layers}{mtp} layers)"),
        ("weights", f"{size(sizes.original)} → {size(sizes.artifact)} ({share:.0%})"),
    ]
    if pruned := report.pruned:
        result.append(("experts per layer", f"{pruned.experts_before} → {pruned.experts_after} ({pruned.method})"))
        if spared := {layer: experts for layer, experts in pruned.super_experts.items() if experts}:
            told = "; ".join(f"{', '.join(map(str, experts))} of layer {layer}" for layer, experts in spared.items())
            result.append(("super experts kept", told))
    if budget := report.budget:
        result.append(("budget", f"{budget.asked}: {size(budget.bytes)} foreseen, {budget.bits:.2f} bits"))
        result += [(role, f"{bits} bits: {schemes}") for role, _, bits, schemes in spent_rows(budget)]
    for role, counts in report.quantized.items():
        if counts.quantized and not (budget and role in budget.roles):
            result.append((role, f"{counts.quantized:,} parameters as {', '.join(counts.schemes)}"))
    result += [("note", note) for note in report.notes]
    if report.recipe.kv_cache == "fp8":
        result.append(("attention cache", "FP8, one calibrated scale per layer"))
    result += tokenizer_rows(report.tokenizer)
    if budget:
        result.append(("predicted KL", f"{budget.predicted_kl:.4f}"))
    if report.checks:
        result += check_rows(report.checks)
    result += exact_row(report)
    told = f"its tokens are in {REFERENCE}" if report.published_text else "is not in the artifact"
    result.append(("check text", told))
    for name, target in report.targets.items():
        result.append((f"target {name}", target_line(target)))
    return result


def tokenizer_rows(record: TokenizerRecord | None) -> list[tuple[str, str]]:
    """With which tokens texts begin and answers end; nothing of an artifact whose llmc did not write it down."""
    if record is None:
        return []
    first, last = (", ".join(_token(*each) for each in ends) for ends in (record.begins_with, record.ends_with))
    never = "nothing: the model names no end token, so that they go on to max_new_tokens or the end of the context"
    made = [("tokenizer.json", f"made from {_printable(record.made_from)}")] if record.made_from else []
    return [
        *made,
        ("texts begin with", f"{first or 'no token of their own'} ({record.because})"),
        ("answers end with", last or never),
    ]


def _token(number: int, text: str | None) -> str:
    """`</s>` (2); what could steer a terminal is written out."""
    return f"`{_printable(text or '?')}` ({number})"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def check_rows(checks: Checks) -> list[tuple[str, str]]:
    """What a comparison with the original found."""
    before = measured(checks.ppl_original, checks.ppl_original_stderr, 3)
    after = measured(checks.ppl, checks.ppl_stderr, 3)
    change = percent(checks.ppl / checks.ppl_original - 1, checks.ppl_increase_stderr, "+")
    far = "" if checks.kl_p999 is None else f"99.9 % {checks.kl_p999:.2f}, "
    rest = f"median {checks.kl_median:.4f}, 99 % {checks.kl_p99:.3f}, {far}max {checks.kl_max:.2f}"
    result = [("measured", "by the pass over the layers, in torch: the weights alone")] if checks.computed_by else []
    result += [
        ("perplexity", f"{before} → {after} ({change})"),
        (kl_name(checks), f"mean {measured(checks.kl_mean, checks.kl_mean_stderr, 4)}, {rest}"),
        ("", KL_TOLD[checks.kl_kind] + _sampling(checks)),
        ("top-1 agreement", f"{percent(checks.top1, checks.top1_stderr)} of {checks.tokens:,} tokens"),
    ]
    if checks.kl_above_0_1 is not None and checks.kl_above_1 is not None:
        some = percent(checks.kl_above_0_1, checks.kl_above_0_1_stderr)
        few = percent(checks.kl_above_1, checks.kl_above_1_stderr)
        result.insert(-1, ("tokens far off", f"{some} with KL above 0.1, {few} above 1"))
    if checks.p_change is not None and checks.p_change_rms is not None:
        mean = percent(checks.p_change, checks.p_change_stderr, "+")
        told = f"mean {mean}, RMS {percent(checks.p_change_rms, checks.p_change_rms_stderr)}"
        result.append(("change of p", f"{told}, of the token that follows"))
    if not checks.computed_by:
        earlier = "not measured: an earlier llmc built this"
        result.append(("runtime alone", runtime_line(checks.runtime) if checks.runtime else earlier))
        result.append(("as built", as_built_line(checks.as_built) if checks.as_built else earlier))
    if checks.mtp_acceptance is not None:
        result.append(("MTP acceptance", f"{checks.mtp_acceptance:.1%} of drafts, greedy"))
    return result + [(f"gate {gate.name}", gate_line(gate)) for gate in checks.gates]


def runtime_line(floor: RuntimeRecord) -> str:
    """`KL from the same weights in torch: median 0.00015, …`: two digits suffice for what is that small."""
    medians = f"median {floor.kl_median:.2g}, of single steps {floor.kl_median_of_steps:.2g}"
    told = f"{medians}, mean {floor.kl_mean:.2g}, 99 % {floor.kl_p99:.2g}, max {floor.kl_max:.2g}"
    return f"KL from the same weights in torch: {told}; top-1 {100 * floor.top1:.2f} % of {floor.tokens:,} tokens"


def as_built_line(found: AsBuiltRecord) -> str:
    """`graph within 0.6 ppm, tokenizer the same`: what was measured of what is on record."""
    graphs = ("graph", found.graph), ("MTP graph", found.mtp_graph)
    told = [f"{name} within {_millionths(value)}" for name, value in graphs if value is not None]
    texts = ("tokenizer", found.tokenizer), ("chat template", found.chat_template)
    told += [f"{name} {'the same' if same else 'ANOTHER'}" for name, same in texts if same is not None]
    return ", ".join(told) or "nothing that this backend tells is on record"


KL_TOLD = {
    "exact": "exact: over the whole vocabulary, in float64",
    "sampled": "estimated without bias, from the likely tokens and a sample of the others",
    "lower bound": "of the likely tokens and one bucket for all others: the whole is larger",
}


def kl_name(checks: Checks) -> str:
    """What the measured KL may be called."""
    return "KL, a lower bound" if checks.kl_kind == "lower bound" else "KL divergence"


def exact_row(report: Report) -> list[tuple[str, str]]:
    """The divergence of the weights alone, where it was taken over the whole vocabulary and is not told anyway."""
    found = report.torch_checks
    if not found or found.kl_kind != "exact" or (report.checks and report.checks.computed_by):
        return []
    told = measured(found.kl_mean, found.kl_mean_stderr, 4)
    return [("KL of the weights", f"mean {told}, {KL_TOLD['exact']}, by the pass over the layers")]


def _sampling(checks: Checks) -> str:
    if checks.kl_sampling_stderr is None or checks.kl_kind != "sampled":
        return ""
    return f" (± {checks.kl_sampling_stderr:.1g})"


def where_rows(checks: Checks) -> list[tuple[str, str]]:
    """Where the divergence is, for who looks at one artifact."""
    places = [
        f"{each.first}{f'–{each.last}' if each.last > each.first else ''}: {each.kl_mean:.4f}"
        for each in checks.kl_by_position
    ]
    kinds = [f"{each.kind} {each.kl_mean:.4f} ({each.tokens:,})" for each in checks.kl_by_kind]
    texts = [
        f"{each.text} {measured(each.kl_mean, each.kl_mean_stderr, 4)} ({each.windows:,} windows)"
        for each in checks.kl_by_source
    ]
    told = (("KL by position", places), ("KL by next token", kinds), ("KL by text", texts))
    return [(name, ", ".join(each)) for name, each in told if each]


def target_line(target: TargetRecord) -> str:
    if target.skipped:
        return f"skipped: {target.skipped}"
    return f"{size(target.file_bytes)} in {len(target.files)} files"


def gate_line(gate: GateRecord) -> str:
    """`passed: +1.30 %, with 95 % confidence at most +1.92 % (at most 2 %)`, in the unit of recipes."""
    told = "passed" if gate.passed else "MISSED"
    if gate.name in _AS_BUILT:
        return f"{told}: {_AS_BUILT[gate.name][not gate.passed]}"
    bound = "at least" if gate.name in ("top1", "mtp_acceptance") else "at most"
    shown: Callable[[float], str]
    if gate.name in ("kl_mean", "runtime_kl"):
        shown, limit = "{:.4g}".format, f"{gate.limit:g} nats"
    elif gate.name in ("graph", "mtp_graph"):
        shown, limit = _millionths, f"{_millionths(gate.limit)} of what logits vary by"
    else:
        shown = partial(percent, error=None, sign="+" if gate.name == "ppl_increase" else "")
        limit = f"{100 * gate.limit:.4g} %"
    judged = "" if gate.end is None else f", with {gate.confidence} % confidence {bound} {shown(gate.end)}"
    return f"{told}: {shown(gate.value)}{judged} ({bound} {limit})"


_AS_BUILT = {
    "tokenizer": (
        "makes of fixed texts what the original's does",
        "makes of fixed texts another thing than the original's",
    ),
    "chat_template": ("renders chats as the original's does", "renders chats otherwise than the original's"),
}


def _millionths(value: float) -> str:
    """`0.79 ppm`, `210 ppm`, `17 %`."""
    return f"{1e6 * value:.2g} ppm" if value < 9.95e-4 else f"{100 * value:.2g} %"


def missed_line(gates: Sequence[GateRecord]) -> str:
    return "; ".join(f"{gate.name} {gate_line(gate)}" for gate in gates)


def measured(value: float, error: float | None, digits: int, sign: str = "") -> str:
    """`0.0396 ± 0.0028`; artifacts of earlier releases lack some errors."""
    return f"{value:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def percent(value: float, error: float | None, sign: str = "") -> str:
    return f"{measured(100 * value, None if error is None else 100 * error, 2, sign)} %"
