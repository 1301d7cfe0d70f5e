"""A comparison in words: for the terminal and for its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from llmc.contracts.comparison import Comparison, Measured
from llmc.progress import size
from llmc.tables import table

HEAD = ("#", "artifact", "weights", "divergence", "limits")
MEASURES = ("#", "KL, nats", "perplexity, %", "top-1 agreement, %")
MEASURED_ON = {
    "weights": "exact divergence of the weights alone, 95 % intervals over windows",
    "backend": "as each artifact’s backend computes, 95 % intervals over windows",
}


def letters(comparison: Comparison) -> dict[str, str]:
    """Artifact → A to Z, then A1 and so on, by which tables call it."""
    return {
        each.artifact: chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")
        for number, each in enumerate(comparison.artifacts)
    }


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One of every artifact, under `HEAD`."""
    names = letters(comparison)
    return [
        (names[each.artifact], each.artifact, f"{size(each.bytes)} ({each.share:.0%})", each.kl_kind, each.verdict)
        for each in comparison.artifacts
    ]


def measured_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One of every artifact, under `MEASURES`."""
    names = letters(comparison)
    return [
        (
            names[each.artifact],
            with_interval(each.kl_mean, "{:.4f}".format),
            with_interval(each.ppl_increase, _signed_percent),
            with_interval(each.top1, _percent),
        )
        for each in comparison.artifacts
    ]


def paired_rows(comparison: Comparison, between: str) -> list[tuple[str, ...]]:
    """One of every pair, under `MEASURES`; `between` stands in front of the verdict."""
    names = letters(comparison)
    return [
        (
            f"{names[each.artifact]} − {names[each.against]}",
            f"{with_interval(each.kl_mean, '{:+.4f}'.format)}{between}{verdict(each.kl_mean)}",
            f"{with_interval(each.ppl, _signed_percent)}{between}{verdict(each.ppl)}",
            f"{with_interval(each.top1, _signed_percent)}{between}{verdict(each.top1, more_is_better=True)}",
        )
        for each in comparison.differences
    ]


def tables(comparison: Comparison) -> list[Table]:
    """What the terminal shows."""
    made = [
        _table("side by side", HEAD, rows(comparison), numbers=False),
        _table(MEASURED_ON[comparison.measured_on], MEASURES, measured_rows(comparison)),
    ]
    if comparison.differences:
        made.append(_table(f"in pairs: {paired_title(comparison)}", MEASURES, paired_rows(comparison, "\n")))
    if comparison.unpaired:
        made.append(_table("not in pairs", ("artifact", "why"), list(comparison.unpaired.items()), numbers=False))
    return made


def paired_title(comparison: Comparison) -> str:
    """What the differences are, and of how much text."""
    first = comparison.differences[0]
    same = all(each.same_source for each in comparison.differences)
    told = "" if same else "; not all were made from the same original"
    return f"against {letters(comparison)[first.against]}, over the same {first.windows:,} windows{told}"


def _table(title: str, head: Sequence[str], body: Sequence[Sequence[str]], numbers: bool = True) -> Table:
    made = table(title, *head, numbers=numbers)
    for row in body:
        made.add_row(*row)
    return made


def verdict(found: Measured, more_is_better: bool = False) -> str:
    """Better or worse than the first, where the interval holds no zero."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "no clear difference"
    return "better" if (found.low > 0) == more_is_better else "worse"


def with_interval(found: Measured, shown: Callable[[float], str]) -> str:
    """`0.0396 [0.0340, 0.0460]`."""
    ends = "" if found.low is None or found.high is None else f" [{shown(found.low)}, {shown(found.high)}]"
    return shown(found.value) + ends


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _signed_percent(value: float) -> str:
    return f"{100 * value:+.2f}"
