"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compare_tables import (
    HEAD,
    MEASURED_ON,
    MEASURES,
    letters,
    measured_rows,
    paired_rows,
    paired_title,
    rows,
    with_interval,
)
from llmc.contracts.comparison import ComparedArtifact, Comparison
from llmc.page import page
from llmc.page.blocks import Block, Figure, Paragraph, Section, Table
from llmc.page.charts import Axis, Plot, Segment, Text, intervals
from llmc.progress import size

_WIDE = 8  # times the smallest: where a scale of logarithms shows more
_NEAR_X, _NEAR_Y = 7.0, 15.0  # percent and pixels: labels that are nearer than this would touch


def comparison_page(comparison: Comparison) -> str:
    """Return it as HTML."""
    sections = [_together(comparison)]
    if pairs := _pairs(comparison):
        sections.append(Section("pairs", "In pairs", "Pairs", pairs))
    names = ", ".join(each.name or each.artifact for each in comparison.artifacts)
    return page("Comparison", names, sections)


def _together(comparison: Comparison) -> Section:
    names = [f"{letter}: {artifact}" for artifact, letter in letters(comparison).items()]
    blocks: list[Block] = [
        Table("Artifacts", HEAD, rows(comparison), words=5),
        Table(f"Measures: {MEASURED_ON[comparison.measured_on]}", MEASURES, measured_rows(comparison)),
        _scatter(comparison.artifacts, names),
        _increase(comparison.artifacts, names),
    ]
    return Section("together", "Side by side", "Side by side", blocks)


def _scatter(artifacts: Sequence[ComparedArtifact], names: Sequence[str]) -> Figure:
    """Size across, divergence up, on a scale of logarithms where it is a wide one."""
    ends = [end for each in artifacts for end in (each.kl_mean.low, each.kl_mean.high, each.kl_mean.value)]
    known = [end for end in ends if end is not None and end > 0]
    up = Axis.around(known, log=bool(known) and max(known) > _WIDE * min(known))
    plot = Plot(up, "weights", "KL, nats", 240)
    sizes = [each.bytes for each in artifacts]
    low, high = min(sizes), max(sizes)
    spare = (high - low) * 0.12 or 0.1 * high
    across = Axis(low - spare, high + spare)
    placed: list[tuple[float, float]] = []
    for name, each in zip(names, artifacts, strict=True):
        x, kl = 100 * across.share(each.bytes), each.kl_mean
        if kl.low is not None and kl.high is not None:
            plot.chart.segments.append(Segment(x, plot.y(max(kl.low, plot.up.low)), x, plot.y(kl.high), "error main"))
        plot.dot(x, kl.value, f"{name}, {size(each.bytes)}, {kl.value:.4f}")
        at = (x, plot.y(kl.value) + 4)
        while any(abs(at[0] - other[0]) < _NEAR_X and abs(at[1] - other[1]) < _NEAR_Y for other in placed):
            at = (at[0], at[1] - _NEAR_Y)
        placed.append(at)
        plot.chart.texts.append(Text(*at, name.partition(":")[0], beside=9))
    plot.label(
        [(100 * across.share(each), size(each)) for each in (across.low + spare, across.high - spare)][
            : 1 + (high > low)
        ]
    )
    body = [
        (name, size(each.bytes), with_interval(each.kl_mean, "{:.4f}".format))
        for name, each in zip(names, artifacts, strict=True)
    ]
    table = Table("Size and divergence", ("artifact", "weights", "KL, nats"), body, folded=True)
    told = "Down and to the left is better. Lines are 95 % intervals; letters are those of the table."
    return Figure("Size against divergence", told, plot.chart, table)


def _increase(artifacts: Sequence[ComparedArtifact], names: Sequence[str]) -> Figure:
    found = [each.ppl_increase for each in artifacts]
    lines = [
        (name, each.value, each.low, each.high, f"{each.value:+.2%}") for name, each in zip(names, found, strict=True)
    ]
    body = [(name, with_interval(each, "{:+.2%}".format)) for name, each in zip(names, found, strict=True)]
    table = Table("Increase of perplexity", ("artifact", "with its interval"), body, folded=True)
    return Figure("Increase of perplexity", "With 95 % intervals; the line is at 0.", intervals(lines), table)


def _pairs(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    if comparison.differences:
        names = letters(comparison)
        lines = [
            (
                f"{names[each.artifact]}: {each.artifact}",
                each.kl_mean.value,
                each.kl_mean.low,
                each.kl_mean.high,
                f"{each.kl_mean.value:+.4f}",
            )
            for each in comparison.differences
        ]
        table = Table("Differences, with 95 % intervals", MEASURES, paired_rows(comparison, ": "), words=4)
        told = "Left of the line: nearer to the original. An interval that holds 0 is no clear difference."
        blocks.append(Paragraph(f"Each {paired_title(comparison)}."))
        blocks.append(Figure("Difference of divergence, nats", told, intervals(lines), table))
    if comparison.unpaired:
        blocks.append(Table("Not in pairs", ("artifact", "why"), list(comparison.unpaired.items()), words=2))
    return blocks
