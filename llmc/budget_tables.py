"""Tables about a budget: what roles lose per scheme, what sizes cost, which scheme got how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from llmc.progress import size
from llmc.tables import table

if TYPE_CHECKING:
    from llmc.contracts.manifest import BudgetRecord
    from llmc.measuring import Measured
    from llmc.planning import PlannedBudget

_WIDTH = 24  # characters of the longest bar


def budget_tables(budget: PlannedBudget | None) -> list[Table]:
    """What other sizes would cost, and where the recipe's budget lies among them; nothing without one."""
    if budget is None:
        return []
    if budget.measured is None:
        made = table(f"{budget.asked}: not measured yet", "what", "", numbers=False)
        made.add_row("size", f"{size(budget.point.bytes)}, {budget.point.bits:.2f} bits")
        made.add_row("schemes above", "a guess: `llmc sensitivity` measures what modules lose, and so does a build")
        made.add_row("what that takes", "one pass over a few thousand tokens forward, one back; later builds need none")
        return [made]
    made = table(f"what sizes cost, measured on {budget.measured}", "safetensors", "bits", "predicted KL", "")
    points = [(point, "") for point in budget.curve]
    if not math.isnan(budget.point.kl):
        points = sorted([*points, (budget.point, f"← {budget.asked}")], key=lambda each: each[0].bytes)
    for point, mark in points:
        made.add_row(size(point.bytes), f"{point.bits:.2f}", f"{point.kl:.3g}", mark, style="bold" if mark else None)
    return [made]


def role_table(found: Measured) -> Table:
    """What each role would lose by itself at some widths, and a bar of how much a parameter of it matters."""
    roles: dict[str, dict[str, float]] = {}
    parameters: dict[str, int] = {}
    for group in found.record.groups.values():
        parameters[group.role] = parameters.get(group.role, 0) + group.parameters
        for bits, loss in _by_bits(group.losses).items():
            mine = roles.setdefault(group.role, {})
            mine[bits] = mine.get(bits, 0.0) + loss
    columns = sorted({bits for mine in roles.values() for bits in mine})
    made = table(
        f"{found.record.model}: KL if a role alone is rounded", "role", "parameters", *columns, "a parameter's",
    )  # fmt: skip
    each = {role: max(mine.values()) / max(1, parameters[role]) for role, mine in roles.items()}
    for role, mine in roles.items():
        losses = [f"{mine[bits]:.3g}" if bits in mine else "" for bits in columns]
        made.add_row(role, f"{parameters[role]:,}", *losses, bar(each[role], each.values()))
    return made


def _by_bits(losses: Mapping[str, float]) -> dict[str, float]:
    """The least that schemes of one width lose: int4-g32, int4-g64 and int4-g128 are int4."""
    found: dict[str, float] = {}
    for name, loss in losses.items():
        kind = name.partition("-")[0]
        found[kind] = min(loss, found.get(kind, math.inf))
    return found


def bar(value: float, among: Iterable[float]) -> str:
    """As long as the value is large, the largest as long as bars get; by logarithms, since factors are what counts."""
    values = [each for each in among if each > 0]
    if value <= 0 or not values:
        return ""
    low, high = math.log10(min(values)) - 0.5, math.log10(max(values))
    return "█" * max(1, round(_WIDTH * (math.log10(value) - low) / (high - low)))


def spent_rows(budget: BudgetRecord) -> list[tuple[str, str, str, str]]:
    """(role, parameters, bits, share of every scheme) of what a budget decided about."""
    rows = []
    for role, counts in budget.roles.items():
        whole = sum(counts.values())
        shares = ", ".join(f"{name} {count / whole:.0%}" for name, count in _by_size(counts))
        rows.append((role, f"{whole:,}", f"{budget.role_bits[role]:.2f}", shares))
    return rows


def _by_size(counts: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))
