"""Limits of what an artifact may lose, held against what was measured.

The recipe's are on the loss: only who builds knows how much of it is too much, and a fault may hide in what strong
compression costs anyway. Those that hold for every model are on faithfulness: no compression, however strong, excuses a
program that computes otherwise than its weights say, or otherwise than when it was built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmc.contracts.confidence import CONFIDENCES
from llmc.errors import InputError

if TYPE_CHECKING:
    from llmc.contracts.part import LimitRecord
    from llmc.runtime.check import CheckReport

# The rounding of activations to int8 costs 0.0014 at most, in the median, over all families that tests know; their
# means are decided by a few tokens that it sends to other experts. See docs/faults.md.
RUNTIME_KL = 0.005  # or what the quantization costs, where that is more: a model that is easily upset is so by rounding
# Other kernels on one machine change 2.9e-6 at most; one scale of one group that is wrong by 5 % changes 1.9e-4.
GRAPH = 4e-5


@dataclass(frozen=True)
class Gate:
    """A limit; `value` is what was measured, `end` of its interval is what is judged if not None. Where it is of yes or
    no, these are 1 and 0. `by_default`: whether it holds without the recipe's saying so.
    """

    name: str
    limit: float
    value: float
    passed: bool
    confidence: int | None = None
    end: float | None = None
    by_default: bool = False


# Gate → (its value in a report, whether the limit is an upper one).
_GATES: dict[str, tuple[Callable[[CheckReport], float], bool]] = {
    "ppl_increase": (lambda report: report.ppl / report.ppl_original - 1, True),
    "kl_mean": (lambda report: report.kl_mean, True),
    "top1": (lambda report: report.top1, False),
    "runtime_kl": (lambda report: _runtime_kl(report) or 0.0, True),
}


def gates(report: CheckReport, limits: Mapping[str, float | LimitRecord], defaults: bool = True) -> list[Gate]:
    """Limits held against a report; InputError for one that is not known here.

    Args:
        limits: The recipe's. One that is not measured, as no graph was made or an earlier llmc made it, is left out.
        defaults: Whether those that it does not name hold, too.
    """
    result = []
    for name, asked in limits.items():
        if name not in _GATES:
            raise InputError(f"gate {name!r} is not known to this llmc, only {', '.join(_GATES)}; upgrade llmc")
        if name == "runtime_kl" and report.runtime is None:
            continue
        measure, upper = _GATES[name]
        value = measure(report)
        if isinstance(asked, (int, float)):
            judged, gate = value, Gate(name, asked, value, True)
        else:
            judged = _end(report, name, asked.confidence)
            gate = Gate(name, asked.limit, value, True, asked.confidence, judged)
        passed = bool(judged <= gate.limit if upper else judged >= gate.limit)
        result.append(replace(gate, passed=passed))
    return result + ([gate for gate in _defaults(report) if gate.name not in limits] if defaults else [])


def _defaults(report: CheckReport) -> list[Gate]:
    """Those that are measured."""
    built = report.as_built
    most = max(RUNTIME_KL, report.runtime.weights_kl_median) if report.runtime else RUNTIME_KL
    found: list[tuple[str, float, float | None, bool]] = [("runtime_kl", most, _runtime_kl(report), True)]
    if built is not None:
        least = built.mtp_acceptance_least
        found += [
            ("graph", GRAPH, built.graph, True),
            ("mtp_graph", GRAPH, built.mtp_graph, True),
            ("tokenizer", 1.0, built.tokenizer, False),
            ("chat_template", 1.0, built.chat_template, False),
        ]
        if least is not None and least > 0:  # of random weights, drafts are accepted by chance alone
            found.append(("mtp_acceptance", least, report.mtp_acceptance, False))
    return [
        Gate(name, limit, float(value), bool(value <= limit if upper else value >= limit), by_default=True)
        for name, limit, value, upper in found
        if value is not None
    ]


def _runtime_kl(report: CheckReport) -> float | None:
    if report.runtime is None:
        return None
    return max(report.runtime.kl_median, report.runtime.kl_median_of_steps)


def _end(report: CheckReport, name: str, confidence: int) -> float:
    try:
        return report.ends[name][str(confidence)]
    except KeyError:
        known = ", ".join(map(str, CONFIDENCES))
        raise InputError(f"gate {name!r}: a confidence of {confidence} % is not known here, only {known}") from None
