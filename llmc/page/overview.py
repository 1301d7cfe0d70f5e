"""What a reader wants to know first: is it good enough, how large is it, what did it lose."""

from __future__ import annotations

from llmc.contracts.report import Report
from llmc.page.blocks import Block, Light, Lights, Paragraph, Section, Tile, Tiles
from llmc.progress import size
from llmc.summary import gate_line, kl_name, measured, percent

GATES = {
    "ppl_increase": "perplexity",
    "kl_mean": "KL divergence",
    "top1": "top-1 agreement",
    "runtime_kl": "runtime against torch",
    "graph": "graph as built",
    "mtp_graph": "MTP graph as built",
    "tokenizer": "tokenizer as built",
    "chat_template": "chat template as built",
    "mtp_acceptance": "MTP acceptance",
}


def verdict(report: Report) -> tuple[str, str]:
    """Passed, missed or neutral, and a sentence."""
    checks = report.checks
    if checks is None:
        return "neutral", "It was not compared with the original."
    if checks.missed:
        *others, last = [GATES.get(gate.name, gate.name) for gate in checks.missed]
        names = f"limits of {', '.join(others)} and {last}" if others else f"limit of {last}"
        return "missed", f"It was rejected: it misses the {names}."
    if not checks.gates:
        return "neutral", "No limits were set; what was measured stands below."
    count = len(checks.gates)
    return (
        "passed",
        "It keeps its limit." if count == 1 else f"It keeps all {count} limits.",
    )


def section(report: Report) -> Section:
    blocks: list[Block] = [Tiles(_tiles(report))]
    if report.checks and report.checks.gates:
        blocks.append(Lights([_light(gate.name, gate.passed, gate_line(gate)) for gate in report.checks.gates]))
    blocks += [Paragraph(note) for note in report.notes]
    return Section("summary", "Summary", "Summary", blocks)


def _light(name: str, passed: bool, told: str) -> Light:
    _, _, rest = told.partition(": ")
    return Light(GATES.get(name, name), "passed" if passed else "missed", rest)


def _tiles(report: Report) -> list[Tile]:
    sizes = report.sizes
    share = f"{sizes.artifact / sizes.original:.0%} of {size(sizes.original)}"
    tiles = [Tile("weights", size(sizes.artifact), share)]
    if checks := report.measured:
        change = percent(checks.ppl / checks.ppl_original - 1, None, "+")
        error = f"± {100 * checks.ppl_increase_stderr:.2f} %, " if checks.ppl_increase_stderr is not None else ""
        kl_error = f"± {checks.kl_mean_stderr:.4f} " if checks.kl_mean_stderr is not None else ""
        top1 = f"± {100 * checks.top1_stderr:.2f} % " if checks.top1_stderr is not None else ""
        tiles += [
            Tile(kl_name(checks), f"{checks.kl_mean:.4f}", f"{kl_error}nats a token, {checks.kl_kind}"),
            Tile("perplexity", change, f"{error}from {measured(checks.ppl_original, None, 3)} to {checks.ppl:.3f}"),
            Tile("same first choice", percent(checks.top1, None), f"{top1}of {checks.tokens:,} tokens"),
        ]
        if checks.mtp_acceptance is not None:
            tiles.append(Tile("MTP drafts accepted", f"{checks.mtp_acceptance:.1%}", "of greedy decoding’s"))
    if pruned := report.pruned:
        before_after = f"{pruned.experts_before} → {pruned.experts_after}"
        tiles.append(Tile("experts a layer", before_after, f"chosen by {pruned.method}"))
    return tiles
