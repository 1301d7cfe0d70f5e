"""Which scheme each group of modules gets so that all of them together lose the least within a budget of bytes.

A multiple-choice knapsack: every group takes one of its choices. Only choices on the lower convex hull of a group's
(bytes, loss) can be best for some price of a byte (Lagrange multiplier); going from the cheapest choice of every group
along the hulls, the steepest edge first, passes all of those solutions (Sinha and Zoltners, "The multiple-choice
knapsack problem", 1979), and each is the best for its own bytes. What a budget leaves over between two of them is
filled by exchanges. Dynamic programming over bytes, in steps as fine as its table allows, gives a second answer, which
is the exact one for few groups; the better of the two counts.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from llmc.errors import InputError

_EXCHANGES = 10_000  # at most; a handful is usual
_TABLE = 1 << 22  # entries of the table of dynamic programming, times choices: some hundredths of a second


@dataclass(frozen=True)
class Choice:
    """What a group of modules may become.

    Attributes:
        scheme: None: it stays as it is.
        bytes: Of all of the group's modules.
        loss: What they cost together, in nats per token.
    """

    scheme: str | None
    bytes: int
    loss: float


@dataclass(frozen=True)
class Allocation:
    """A choice for every group, by its name."""

    chosen: dict[str, Choice] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Of all groups."""
        return sum(choice.bytes for choice in self.chosen.values())

    @property
    def loss(self) -> float:
        """The sum, whatever the order of the groups."""
        return math.fsum(choice.loss for choice in self.chosen.values())


def least_bytes(groups: Mapping[str, Sequence[Choice]]) -> int:
    """The least that any allocation takes."""
    return sum(min(choice.bytes for choice in choices) for choices in groups.values())


def allocate(groups: Mapping[str, Sequence[Choice]], budget: int) -> Allocation:
    """Choose for every group so that the sum of losses is least and that of bytes at most `budget`.

    The result does not depend on the order of groups or choices. It is as good as the best one but for less than what
    a single edge of a hull is worth, and usually equal to it.

    Args:
        groups: By name; each has at least one choice.
        budget: In bytes.

    Raises:
        InputError: No allocation is as small; or a loss is no number.
    """
    _check(groups)
    if (least := least_bytes(groups)) > budget:
        raise InputError(f"the least that these choices take is {least:,} bytes, more than the budget of {budget:,}")
    answers = [_exchanged(groups, found, budget) for found in (_greedy(groups, budget), _tabled(groups, budget))]
    return Allocation(min(answers, key=lambda each: Allocation(each).loss))


def curve(groups: Mapping[str, Sequence[Choice]]) -> list[Allocation]:
    """Return the allocations that are best for some price of a byte, the smallest first."""
    _check(groups)
    chosen = {name: hull(groups[name])[0] for name in sorted(groups)}
    found = [Allocation(dict(chosen))]
    for _, name, _, better in _edges(groups):
        chosen[name] = better
        found.append(Allocation(dict(chosen)))
    return found


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices on the lower convex hull: more bytes and less loss from each to the next, ever more slowly."""
    best: list[Choice] = []
    for choice in sorted(choices, key=_order):
        if best and (choice.bytes == best[-1].bytes or choice.loss >= best[-1].loss):
            continue
        while len(best) > 1 and _slope(best[-2], best[-1]) <= _slope(best[-2], choice):
            best.pop()
        best.append(choice)
    return best


def _check(groups: Mapping[str, Sequence[Choice]]) -> None:
    for name, choices in groups.items():
        if not choices:
            raise ValueError(f"{name} has no choice")
        for choice in choices:
            if not (math.isfinite(choice.loss) and choice.loss >= 0):
                raise InputError(f"{name} as {choice.scheme} would cost {choice.loss} nats; that is no number to go by")


def _order(choice: Choice) -> tuple[int, float, str]:
    return choice.bytes, choice.loss, choice.scheme or ""


def _slope(cheaper: Choice, better: Choice) -> float:
    """Nats that a byte saves."""
    return (cheaper.loss - better.loss) / (better.bytes - cheaper.bytes)


def _edges(groups: Mapping[str, Sequence[Choice]]) -> list[tuple[float, str, Choice, Choice]]:
    """The steepest first; those of one group in the order of its hull."""
    found = [
        (_slope(cheaper, better), name, cheaper, better)
        for name, choices in groups.items()
        for cheaper, better in pairwise(hull(choices))
    ]
    return sorted(found, key=lambda edge: (-edge[0], edge[1], edge[2].bytes))


def _greedy(groups: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """All edges that fit, the steepest first; one behind an edge that did not fit waits for the exchanges."""
    chosen = {name: hull(groups[name])[0] for name in sorted(groups)}
    spare = budget - sum(choice.bytes for choice in chosen.values())
    for _, name, cheaper, better in _edges(groups):
        if chosen[name] == cheaper and better.bytes - cheaper.bytes <= spare:
            chosen[name] = better
            spare -= better.bytes - cheaper.bytes
    return chosen


def _tabled(groups: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """By dynamic programming over the bytes above the least, in steps that they are rounded up to."""
    spare = budget - least_bytes(groups)
    ordered = {name: sorted(set(groups[name]), key=_order) for name in sorted(groups)}
    above = {name: [choice.bytes - choices[0].bytes for choice in choices] for name, choices in ordered.items()}
    most = max(1, _TABLE // sum(map(len, ordered.values())))
    step = max(1, math.gcd(*(each for found in above.values() for each in found)), -(-spare // most))
    width = spare // step + 1
    best, taken = np.zeros(width), {}
    for name, choices in ordered.items():
        losses = np.full((len(choices), width), np.inf)
        for row, more in enumerate(above[name]):
            if (steps := -(-more // step)) < width:
                losses[row, steps:] = best[: width - steps] + choices[row].loss
        taken[name] = losses.argmin(0)
        best = losses.min(0)
    chosen, left = {}, width - 1
    for name in reversed(ordered):
        row = int(taken[name][left])
        chosen[name] = ordered[name][row]
        left -= -(-above[name][row] // step)
    return dict(sorted(chosen.items()))


def _exchanged(groups: Mapping[str, Sequence[Choice]], chosen: Mapping[str, Choice], budget: int) -> dict[str, Choice]:
    """The same, after all changes of one group or of two that save something and fit."""
    chosen = dict(chosen)
    spare = budget - sum(choice.bytes for choice in chosen.values())
    for _ in range(_EXCHANGES):
        found = _best_exchange(groups, chosen, spare)
        if found is None:
            break
        for name, choice in found.items():
            spare -= choice.bytes - chosen[name].bytes
            chosen[name] = choice
    return chosen


def _best_exchange(
    groups: Mapping[str, Sequence[Choice]], chosen: Mapping[str, Choice], spare: int
) -> dict[str, Choice] | None:
    """The changes of one group or two that save the most and fit; None: nothing is saved."""
    changes = sorted(
        (choice.bytes - chosen[name].bytes, choice.loss - chosen[name].loss, name, choice.scheme or "", choice)
        for name in groups
        for choice in set(groups[name])
        if choice != chosen[name]
    )
    takes = [change[0] for change in changes]
    # For each number of bytes the change of least loss that takes no more, and the best one of another group.
    leaders = list(_leaders([(loss, name, choice) for _, loss, name, _, choice in changes]))
    best, least = None, -1e-12 * max(1.0, math.fsum(choice.loss for choice in chosen.values()))
    for bytes_, loss, name, _, choice in changes:
        if bytes_ <= spare and loss < least:
            best, least = {name: choice}, loss
        if (end := bisect.bisect_right(takes, spare - bytes_)) == 0:
            continue
        partner = next((other for other in leaders[end - 1] if other[1] != name), None)
        if partner is not None and loss + partner[0] < least:
            best, least = {name: choice, partner[1]: partner[2]}, loss + partner[0]
    return best


_Change = tuple[float, str, Choice]


def _leaders(changes: Sequence[_Change]) -> Iterator[tuple[_Change, ...]]:
    """After each change the best one so far, and the best one of another group."""
    first: _Change | None = None
    second: _Change | None = None
    for change in changes:
        if first is None or change[0] < first[0]:
            if first is not None and first[1] != change[1]:
                second = first
            first = change
        elif change[1] != first[1] and (second is None or change[0] < second[0]):
            second = change
        yield (first,) if second is None else (first, second)
