"""Sections about the inside of the model: layers and experts."""

from __future__ import annotations

import math

from llmc.contracts.report import ExpertsOfLayer, LayerSummary, Report
from llmc.page.blocks import Figure, Paragraph, Section, Table
from llmc.page.charts import Axis, Plot, slots
from llmc.page.heat import heat

_WIDEST = 9  # percent of a chart that a layer's column takes at most


def sections(report: Report) -> list[Section]:
    """Experts alone where the model has some."""
    return [each for each in (_layers(report), _experts(report)) if each.blocks]


def _layers(report: Report) -> Section:
    found = Section("layers", "Layer by layer", "Layers")
    layers = report.layers
    behind = [each for each in layers if each.error is not None]
    if behind:
        plot = Plot(Axis.around([each.error or 0.0 for each in behind]), "layer", "relative distance")
        for each, (x, width) in zip(behind, slots(len(behind)), strict=True):
            tip = f"layer {each.layer}: {each.error:.4g}"
            bar = min(0.8 * width, _WIDEST)
            plot.column(x + (width - bar) / 2, bar, each.error or 0.0, "main", tip)
        _number(plot, behind)
        angle = any(each.cosine is not None for each in behind)
        head = ("layer", "relative distance", *(["cosine"] if angle else []))
        rows = [
            (str(each.layer), f"{each.error:.4g}", *([f"{each.cosine or 0:.5f}"] if angle else [])) for each in behind
        ]
        told = "How far the hidden states behind each layer are from the original’s, over the check text."
        table = Table("Hidden states by layer", head, rows, folded=True)
        found.blocks.append(Figure("How the error grows", told, plot.chart, table))
    if rounded := [each for each in layers if each.modules and each.module_error_largest]:
        found.blocks.append(_modules(rounded))
    return found


def _number(plot: Plot, layers: list[LayerSummary]) -> None:
    plot.label([(x + width / 2, str(each.layer)) for each, (x, width) in zip(layers, slots(len(layers)), strict=True)])


def _modules(layers: list[LayerSummary]) -> Figure:
    pairs = [(each.module_error_median or 0.0, each.module_error_largest or 0.0) for each in layers]
    plot = Plot(Axis.around([value for pair in pairs for value in pair], log=True), "layer", "relative squared error")
    places = [x + width / 2 for x, width in slots(len(layers))]
    for x, each, (median, largest) in zip(places, layers, pairs, strict=True):
        if median:
            plot.dot(x, median, f"layer {each.layer}, median: {median:.2e}")
        plot.dot(x, largest, f"layer {each.layer}, {each.largest_in}: {largest:.2e}", "warn")
    _number(plot, layers)
    rows = [
        (str(each.layer), each.largest_in or "", str(each.modules), f"{median:.2e}", f"{largest:.2e}")
        for each, (median, largest) in zip(layers, pairs, strict=True)
    ]
    head = ("layer", "largest in", "modules", "median", "largest")
    told = "Errors of a layer’s quantized modules on the calibration text: of their outputs, or of weights (rtn)."
    table = Table("Modules by layer", head, rows, words=2, folded=True)
    return Figure("Where rounding hurts", told, plot.chart, table, [("main", "median"), ("warn", "largest")])


def _experts(report: Report) -> Section:
    found = Section("experts", "Experts", "Experts")
    layers = [each for each in report.experts if each.load_original]
    if not layers:
        return found
    if pruned := report.pruned:
        counts = f"{pruned.experts_before} experts a layer became {pruned.experts_after}"
        found.blocks.append(Paragraph(f"{counts}, chosen by {pruned.method}. Numbers are those of the original."))
    text = " and ".join(sorted({each.measured_on for each in layers}))
    told = f"How often each expert is chosen, beside the others of its layer, on the {text} text; pruned ones marked."
    found.blocks.append(_loads("Load in the original", told, layers, [each.load_original for each in layers]))
    if all(each.load for each in layers):
        told = "The same in this artifact."
        found.blocks.append(_loads("Load in the artifact", told, layers, [each.load for each in layers]))
    if agreed := [(each.layer, each.agreement) for each in layers if each.agreement is not None]:
        found.blocks.append(_agreement(agreed))
    if wrong := [each for each in layers if any(each.errors)]:
        found.blocks.append(_errors(wrong))
    return found


def _errors(layers: list[ExpertsOfLayer]) -> Figure:
    """Shades go from nothing to the largest error of all."""
    known = [{number: error for number, error in enumerate(each.errors) if error is not None} for each in layers]
    most = max(max(mine.values(), default=0.0) for mine in known) or 1.0
    values = [[mine.get(number, 0.0) / most for number in range(len(each.errors))]
              for each, mine in zip(layers, known, strict=True)]  # fmt: skip
    gone = [[number for number, error in enumerate(each.errors) if error is None] for each in layers]
    rows = []
    for each, mine in zip(layers, known, strict=True):
        worst = max(mine, key=mine.__getitem__)
        rows.append((str(each.layer), str(worst), f"{mine[worst]:.4f}", f"{sum(mine.values()) / len(mine):.4f}"))
    table = Table("Errors of experts by layer", ("layer", "worst expert", "its error", "mean"), rows, folded=True)
    legend = [("shade1", "little"), ("shade8", f"{most:.3g}")] + (
        [("gone", "pruned, or never chosen")] if any(gone) else []
    )
    told = "Relative distance of each expert’s outputs from the original’s, both given the tokens that went there."
    names = [str(each.layer) for each in layers]
    return Figure("Errors of experts", told, heat(names, values, gone, "expert", "layer"), table, legend)


def _agreement(layers: list[tuple[int, float]]) -> Figure:
    plot = Plot(Axis(0, 1), "layer", "agreement, %", unit=100)
    places = slots(len(layers))
    for (layer, share), (x, width) in zip(layers, places, strict=True):
        bar = min(0.8 * width, _WIDEST)
        plot.column(x + (width - bar) / 2, bar, share, "main", f"layer {layer}: {share:.1%}")
    plot.label([(x + width / 2, str(layer)) for (layer, _), (x, width) in zip(layers, places, strict=True)])
    rows = [(str(layer), f"{100 * share:.2f}") for layer, share in layers]
    table = Table("Agreement by layer", ("layer", "agreement, %"), rows, folded=True)
    told = "Share of the original’s choices of experts that the artifact makes, too."
    return Figure("Do routers choose alike?", told, plot.chart, table)


def _loads(title: str, told: str, layers: list[ExpertsOfLayer], loads: list[list[float]]) -> Figure:
    """Shades go from nothing to twice an even share."""
    values = [[min(load * len(mine) / 2, 1.0) for load in mine] for mine in loads]
    names, gone = [str(each.layer) for each in layers], [each.removed for each in layers]
    rows = []
    for each, mine in zip(layers, loads, strict=True):
        kept = [load for number, load in enumerate(mine) if number not in {*each.removed}] or [math.nan]
        removed = ", ".join(map(str, each.removed)) or "none"
        rows.append((str(each.layer), removed, f"{min(kept):.2%}", f"{1 / len(mine):.2%}", f"{max(kept):.2%}"))
    head = ("layer", "pruned", "least of those kept", "even share", "most")
    table = Table(title, head, rows, words=2, folded=True)
    legend = [("shade1", "little"), ("shade4", "an even share"), ("shade8", "twice that, or more")]
    legend += [("gone", "pruned")] if any(gone) else []
    return Figure(title, told, heat(names, values, gone, "expert", "layer"), table, legend)
