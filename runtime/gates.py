"""Limits of what an artifact may lose, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmc.contracts.confidence import CONFIDENCES
from llmc.errors import InputError

if TYPE_CHECKING:
    from llmc.contracts.part import LimitRecord
    from llmc.runtime.check import CheckReport


@dataclass(frozen=True)
class Gate:
    """A limit of the recipe; `value` is what was measured, `end` of its interval is what is judged if not None."""

    name: str
    limit: float
    value: float
    passed: bool
    confidence: int | None = None
    end: float | None = None


# Gate → (its value in a report, whether the limit is an upper one).
_GATES: dict[str, tuple[Callable[[CheckReport], float], bool]] = {
    "ppl_increase": (lambda report: report.ppl / report.ppl_original - 1, True),
    "kl_mean": (lambda report: report.kl_mean, True),
    "top1": (lambda report: report.top1, False),
}


def gates(report: CheckReport, limits: Mapping[str, float | LimitRecord]) -> list[Gate]:
    """The recipe's limits held against a report; InputError for one that is not known here."""
    result = []
    for name, asked in limits.items():
        if name not in _GATES:
            raise InputError(f"gate {name!r} is not known to this llmc, only {', '.join(_GATES)}; upgrade llmc")
        measure, upper = _GATES[name]
        value = measure(report)
        if isinstance(asked, (int, float)):
            judged, gate = value, Gate(name, asked, value, True)
        else:
            judged = _end(report, name, asked.confidence)
            gate = Gate(name, asked.limit, value, True, asked.confidence, judged)
        passed = bool(judged <= gate.limit if upper else judged >= gate.limit)
        result.append(replace(gate, passed=passed))
    return result


def _end(report: CheckReport, name: str, confidence: int) -> float:
    try:
        return report.ends[name][str(confidence)]
    except KeyError:
        known = ", ".join(map(str, CONFIDENCES))
        raise InputError(f"gate {name!r}: a confidence of {confidence} % is not known here, only {known}") from None
