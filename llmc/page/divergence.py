"""Sections about what an artifact says, beside what the original said."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.contracts.fidelity import HistogramRecord
from llmc.contracts.manifest import Checks
from llmc.contracts.report import Report
from llmc.page.blocks import Block, Excerpt, Excerpts, Figure, Paragraph, Section, Table
from llmc.page.charts import Axis, Plot, Segment, Text, lying_bars, power_of_ten, slots
from llmc.summary import KL_TOLD, check_rows, kl_name, measured

_LARGE, _HUGE = 0.1, 1.0  # nats
_MARKER_ROW = 17  # pixels


def sections(report: Report) -> list[Section]:
    """Nothing of an artifact that was not compared."""
    if (checks := report.measured) is None:
        return []
    made = [_spread(report, checks), _where(checks), _worst(report)]
    return [each for each in made if each.blocks]


def _spread(report: Report, checks: Checks) -> Section:
    found = Section("divergence", "How far it is from the original", "Divergence")
    told = f"{kl_name(checks)} from the original’s distribution, token by token: {KL_TOLD[checks.kl_kind]}."
    if checks.computed_by:
        told += " It was measured by the pass over the layers, in torch: it is what the weights alone cost."
    found.blocks.append(Paragraph(told))
    if checks.kl_histogram:
        found.blocks.extend([_histogram(checks, checks.kl_histogram), _beyond(checks.kl_histogram)])
    rows = [(name or "how", value) for name, value in check_rows(checks) if not name.startswith("gate ")]
    found.blocks.append(Table("All measures", ("measure", "how it came out"), rows, words=2))
    exact = report.torch_checks
    if exact and exact is not checks:
        value = measured(exact.kl_mean, exact.kl_mean_stderr, 4)
        weights = f"The weights alone, before any target rounds: mean KL {value} nats ({exact.kl_kind})."
        found.blocks.append(Paragraph(weights))
    if against := report.against:
        value = measured(against.checks.kl_mean, against.checks.kl_mean_stderr, 4)
        anew = f"Computed anew by llmc check --against, over {against.windows:,} windows: mean KL {value} nats"
        found.blocks.append(
            Paragraph(f"{anew}, perplexity {against.checks.ppl_original:.3f} → {against.checks.ppl:.3f}.")
        )
    return found


def _bins(record: HistogramRecord) -> list[tuple[float, float, int]]:
    """(low, high, count) from the first that is not empty to the last; what is less than all edges begins at 0."""
    edges = [0.0, *record.edges, float("inf")]
    found = list(zip(edges, edges[1:], record.counts, strict=False))
    full = [number for number, (_, _, count) in enumerate(found) if count]
    return found[full[0] : full[-1] + 1] if full else []


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:.2g}"
    return f"{low:.2g} and more" if high == float("inf") else f"{low:.2g} to {high:.2g}"


def _tail(low: float) -> str:
    return "bad" if low >= _HUGE else "warn" if low >= _LARGE * 0.999 else "main"


def _histogram(checks: Checks, record: HistogramRecord) -> Figure:
    bins, total = _bins(record), sum(record.counts)
    markers = [("median", checks.kl_median), ("mean", checks.kl_mean), ("99\u00a0%", checks.kl_p99)]
    markers += [("99.9\u00a0%", checks.kl_p999)] if checks.kl_p999 is not None else []
    up, room = Axis.around([count / total for _, _, count in bins]), _MARKER_ROW * len(markers)
    plot = Plot(up, "divergence, in nats", "share of tokens, %", unit=100, room=room)
    places = slots(len(bins))
    for (low, high, count), (x, width) in zip(bins, places, strict=True):
        tip = f"{_range(low, high)} nats: {count:,} tokens, {count / total:.2%}"
        plot.column(x + 0.06 * width, 0.88 * width, count / total, _tail(low), tip)
    plot.label([(x, power_of_ten(low)) for (low, _, _), (x, _) in zip(bins, places, strict=True) if _round(low)])
    _mark(plot, markers, bins)
    rows = [(_range(low, high), f"{count:,}", f"{100 * count / total:.3f}") for low, high, count in bins]
    legend = [("main", "up to 0.1 nats"), ("warn", "above 0.1"), ("bad", "above 1")]
    names = ", ".join(f"{name}\u00a0{value:.3g}" for name, value in markers)
    told = f"{total:,} tokens by their divergence, on a scale of logarithms: {names}, largest {checks.kl_max:.3g} nats."
    table = Table("Tokens by divergence", ("nats", "tokens", "%"), rows, folded=True)
    return Figure("How the divergence is spread", told, plot.chart, table, legend)


def _round(low: float) -> bool:
    """Whether it is a power of ten."""
    return low > 0 and f"{low:.1e}".startswith("1.0")


def _mark(plot: Plot, markers: Sequence[tuple[str, float]], bins: Sequence[tuple[float, float, int]]) -> None:
    """Lines at some values, the largest one's label on top, each left of its line, so that none crosses another."""
    known = [(low, high) for low, high, _ in bins if low > 0 and high < float("inf")]
    if not known:
        return
    first = next(number for number, (low, _, _) in enumerate(bins) if low == known[0][0])
    axis, width = Axis(known[0][0], known[-1][1], True), 100 / len(bins)
    for row, (name, value) in enumerate(sorted(markers, key=lambda each: -each[1])):
        if value < axis.low:
            continue
        x = width * (first + axis.share(value) * len(known))
        y = _MARKER_ROW * (row + 1) + 8
        plot.chart.segments.append(Segment(x, y - 11, x, plot.floor, "marker"))
        if x > 30:
            plot.chart.texts.append(Text(x - 0.8, y, f"{name} {value:.3g}", "end", "label marker"))


def _beyond(record: HistogramRecord) -> Figure:
    """The tail: how many tokens are beyond a divergence, both on scales of logarithms."""
    bins, total, left = _bins(record), sum(record.counts), sum(record.counts)
    points = []
    for low, _, count in bins:
        points.append((low, left / total))
        left -= count
    points = [each for each in points if each[0] > 0]
    up = Axis.around([share for _, share in points], log=True)
    plot = Plot(up, "divergence, in nats", "tokens beyond, %", unit=100)
    across = Axis(points[0][0], max(points[-1][0], points[0][0] * 10), True) if points else Axis(0.1, 1.0, True)
    places = [(100 * across.share(low), share) for low, share in points]
    plot.path(places)
    for (x, share), (low, _) in zip(places, points, strict=True):
        plot.dot(x, share, f"{share:.3%} of tokens beyond {low:.2g} nats", f"small {_tail(low)}")
    plot.label([(x, power_of_ten(low)) for (x, _), (low, _) in zip(places, points, strict=True) if _round(low)])
    rows = [(f"{low:.2g}", f"{100 * share:.4g}") for low, share in points]
    table = Table("Tokens beyond a divergence", ("nats", "%"), rows, folded=True)
    return Figure("The tail", "Share of tokens whose divergence is at least this large.", plot.chart, table)


def _where(checks: Checks) -> Section:
    found = Section("where", "Where it goes wrong", "Where")
    if checks.kl_by_position:
        found.blocks.append(_positions(checks))
    if checks.kl_by_kind:
        found.blocks.append(_kinds(checks))
    if checks.kl_by_source:
        found.blocks.append(_sources(checks))
    return found


def _positions(checks: Checks) -> Figure:
    rows = checks.kl_by_position
    highest = [each.kl_mean + each.kl_mean_stderr for each in rows]
    plot = Plot(Axis.around(highest), "position in the window, from", "mean divergence, nats")
    places = [x + width / 2 for x, width in slots(len(rows))]
    plot.path([(x, each.kl_mean) for x, each in zip(places, rows, strict=True)])
    names = [f"{each.first:,}" + (f"–{each.last:,}" if each.last > each.first else "") for each in rows]
    for x, each, name in zip(places, rows, names, strict=True):
        tip = f"{name}: {measured(each.kl_mean, each.kl_mean_stderr, 4)}"
        plot.dot(x, each.kl_mean, tip, error=each.kl_mean_stderr)
    plot.label([(x, str(each.first)) for x, each in zip(places, rows, strict=True)])
    body = [(name, f"{each.kl_mean:.4f}", f"{each.kl_mean_stderr:.4f}") for name, each in zip(names, rows, strict=True)]
    table = Table("Divergence by position", ("position", "mean, nats", "standard error"), body, folded=True)
    told = "Mean over all windows at these places; lines are one standard error."
    return Figure("By position in the window", told, plot.chart, table)


def _kinds(checks: Checks) -> Figure:
    rows = [(f"{each.kind} ({each.tokens:,})", each.kl_mean, None, f"{each.kl_mean:.4f}") for each in checks.kl_by_kind]
    body = [(each.kind, f"{each.tokens:,}", f"{each.kl_mean:.4f}") for each in checks.kl_by_kind]
    table = Table("Divergence by kind of token", ("kind", "tokens", "mean, nats"), body, folded=True)
    told = "Mean divergence where such a token follows, and how many do."
    return Figure("By kind of token", told, lying_bars(rows), table)


def _sources(checks: Checks) -> Figure:
    rows = [
        (f"{each.text} ({each.windows:,} windows)", each.kl_mean, each.kl_mean_stderr,
         measured(each.kl_mean, each.kl_mean_stderr, 4))
        for each in checks.kl_by_source
    ]  # fmt: skip
    body = [
        (each.text, f"{each.windows:,}", told, f"{each.ppl_original:.3f}", f"{each.ppl:.3f}")
        for each, (_, _, _, told) in zip(checks.kl_by_source, rows, strict=True)
    ]
    head = ("text", "windows", "mean, nats", "perplexity before", "after")
    told = "Mean divergence over the windows of each text; lines are one standard error."
    return Figure("By text", told, lying_bars(rows), Table("Divergence by text", head, body, folded=True))


def _worst(report: Report) -> Section:
    found = Section("worst", "The tokens that suffered most", "Worst tokens")
    blocks: list[Block] = []
    if report.worst:
        rows = [
            Excerpt(each.before.lstrip("\n"), each.token, f"{each.kl:.2f}", f"{_p(each.p_original)} → {_p(each.p)}")
            for each in report.worst
        ]
        blocks = [Excerpts("Tokens of the largest divergence, each with the text in front of it", rows)]
    elif report.measured and report.measured.worst:
        blocks = [Paragraph("Their text is not shown, as the check text is not published with this artifact.")]
    found.blocks.extend(blocks)
    return found


def _p(probability: float) -> str:
    return f"{probability:.3f}" if probability >= 0.0005 else f"{probability:.0e}"
