"""Sections about what was spent on what: bytes, bits of a budget, schemes."""

from __future__ import annotations

from llmc.budget_tables import spent_rows
from llmc.contracts.manifest import BudgetRecord
from llmc.contracts.report import Report
from llmc.page.blocks import Figure, Paragraph, Section, Table
from llmc.page.charts import Axis, Plot, lying_bars
from llmc.progress import size


def sections(report: Report) -> list[Section]:
    """Bits of a budget alone where there was one."""
    return [each for each in (_sizes(report), _budget(report), _roles(report)) if each.blocks]


def _sizes(report: Report) -> Section:
    sizes = report.sizes
    share = f"{size(sizes.artifact)} ({sizes.artifact / sizes.original:.0%})"
    rows = [
        ("the original’s weights", float(sizes.original), None, size(sizes.original)),
        ("this artifact’s weights", float(sizes.artifact), None, share),
    ]
    rows += [
        (f"in memory, {name}", float(target.weight_bytes), None, size(target.weight_bytes))
        for name, target in report.targets.items()
        if target.weight_bytes
    ]
    table = Table("Bytes of weights", ("what", "bytes"), [(row[0], f"{row[1]:,.0f}") for row in rows], folded=True)
    told = "What lies on the disk, and what each target needs of it in memory; caches come on top."
    found = Section("size", "Size and memory", "Size")
    found.blocks.append(Figure("Before and after", told, lying_bars(rows, first="before"), table))
    body = [
        (
            name,
            target.skipped or f"{size(target.file_bytes)} in {len(target.files)} files",
            "; ".join(target.notes) or "–",
        )
        for name, target in report.targets.items()
    ]
    if body:
        found.blocks.append(Table("Targets", ("target", "files of its own", "to know"), body, words=3))
    return found


def _budget(report: Report) -> Section:
    found = Section("budget", "Bits to a budget", "Budget")
    if budget := report.budget:
        known = report.exact or report.checks
        measured = f" Measured: {known.kl_mean:.4f} ({known.kl_kind})." if known else ""
        found.blocks.append(
            Paragraph(
                f"The recipe asks for {budget.asked}. Which module gets which scheme was chosen for the least "
                f"predicted divergence, from sensitivities on {budget.tokens:,} calibration tokens. "
                f"Predicted: {budget.predicted_kl:.4f}.{measured}"
            )
        )
        spent = [(role, schemes, count, bits) for role, count, bits, schemes in spent_rows(budget)]
        found.blocks.append(_curve(budget, known.kl_mean if known else None))
        found.blocks.append(Table("What it was spent on", ("role", "schemes", "parameters", "bits"), spent, words=2))
    return found


def _curve(budget: BudgetRecord, measured: float | None) -> Figure:
    points = [(each.bytes, each.kl) for each in budget.curve if each.kl > 0]
    found = [*points, (budget.bytes, budget.predicted_kl), *([(budget.bytes, measured)] if measured else [])]
    plot = Plot(Axis.around([kl for _, kl in found], log=True), "weights", "divergence, nats")
    sizes = [each for each, _ in found]
    low, high = min(sizes), max(max(sizes), min(sizes) + 1)

    def x(count: float) -> float:
        return 4 + 92 * (count - low) / (high - low)

    plot.path([(x(count), kl) for count, kl in points])
    for count, kl in points:
        plot.dot(x(count), kl, f"{size(count)}: {kl:.3g} predicted", "small main")
    plot.dot(x(budget.bytes), budget.predicted_kl, f"predicted: {budget.predicted_kl:.4f}", "chosen")
    if measured:
        plot.dot(x(budget.bytes), measured, f"measured: {measured:.4f}", "warn")
    plot.label([(x(low + share * (high - low)), size(low + share * (high - low))) for share in (0, 0.5, 1)])
    rows = [(size(each.bytes), f"{each.bits:.2f}", f"{each.kl:.3g}") for each in budget.curve]
    table = Table("What sizes cost, as predicted", ("safetensors", "bits", "KL divergence"), rows, folded=True)
    legend = [("main", "predicted, other sizes"), ("chosen", "predicted, this one"), ("warn", "measured")]
    told = "What other sizes would have cost, and how the prediction came out."
    return Figure("Predicted against measured", told, plot.chart, table, legend[: 3 if measured else 2])


def _roles(report: Report) -> Section:
    found = Section("roles", "What was done to each role", "Roles")
    rows = [
        (
            role,
            ", ".join(each.schemes) or "as in the original",
            f"{each.parameters:,}",
            f"{each.quantized / each.parameters:.0%}" if each.parameters else "–",
            size(each.bytes),
            f"{8 * each.bytes / each.parameters:.2f}" if each.parameters else "–",
        )
        for role, each in report.quantized.items()
    ]
    head = ("role", "schemes", "parameters", "quantized", "bytes", "bits each")
    found.blocks.append(Table("Roles", head, rows, words=2))
    if report.treatments:
        body = [
            (
                each.role,
                each.scheme,
                each.method,
                f"{each.modules:,}",
                f"{each.error_median:.2e}",
                f"{each.error_largest:.2e}",
            )
            for each in report.treatments
        ]
        head = ("role", "scheme", "method", "modules", "median error", "largest")
        found.blocks.append(Table("Errors by role, scheme and method", head, body, words=3))
    if report.fallbacks:
        found.blocks.append(
            Table("Fallbacks", ("module", "what was done"), list(report.fallbacks.items()), words=2, folded=True)
        )
    return found
