"""Samples of an audit: from what the harness logs of one model to values, and from two models' values to a record."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmc.audit_measures import Measure, measured
from llmc.audit_scores import BY_LENGTH, CONFIDENCE, Answered, Values, scores
from llmc.audit_tasks import ROW, AuditTask
from llmc.contracts.audit import Better, TaskRecord

_DIRECTIONS: dict[bool | None, Better] = {True: "higher", False: "lower", None: "neither"}


@dataclass
class Unit:
    """What one model said of a sample."""

    prompt: str
    target: str
    answer: str
    values: Values
    group: str = ""


@dataclass
class Answers:
    """One model's answers to a task."""

    units: dict[int, Unit] = field(default_factory=dict)
    better: dict[str, Better] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)


def read_answers(task: AuditTask, samples: Iterable[dict[str, Any]], higher: dict[str, bool | None]) -> Answers:
    """Return one model's answers to a task.

    Args:
        samples: As the harness logs them.
        higher: Whether more of a metric of the harness is better.
    """
    found, units = Answers(), defaultdict[int, list[Answered]](list)
    for sample in samples:
        answered = _answered(sample)
        if task.scores:
            units[sample["doc"].get(ROW, sample["doc_id"])].append(answered)
            continue
        unit = found.units.setdefault(sample["doc_id"], _unit(task, [answered], {}))
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric}, {sample['filter']}"
            if isinstance(sample[metric], bool | int | float):
                unit.values[name] = float(sample[metric])
                found.better[name] = _DIRECTIONS[higher.get(metric)]
            else:
                found.skipped.add(name)
    for place, answers in units.items():
        values = [scores[name].values(answers) for name in task.scores]
        found.units[place] = _unit(task, answers, {key: value for each in values for key, value in each.items()})
    for name in task.scores:
        found.better |= scores[name].measures
    return found


def _answered(sample: dict[str, Any]) -> Answered:
    prompt = str(sample["arguments"][0][0])
    first = sample["filtered_resps"][0]
    if isinstance(first, str):
        texts = tuple(str(text) for text in sample["resps"][0])
        return Answered(sample["doc"], prompt, sample["target"], texts=texts)
    if isinstance(first, tuple | list):
        # Of a metric that asks for more than the choices, such as the mutual information, those come first.
        choices = tuple(str(arguments[1]) for arguments in sample["arguments"])
        logprobs = tuple(float(each[0]) for each in sample["filtered_resps"])
        return Answered(sample["doc"], prompt, sample["target"], choices, logprobs)
    return Answered(sample["doc"], prompt, sample["target"])


def _unit(task: AuditTask, answers: Sequence[Answered], values: Values) -> Unit:
    first = answers[0]
    target = first.target
    if isinstance(target, int) and 0 <= target < len(first.choices):
        target = first.choices[target].strip()
    said = list(dict.fromkeys(each.answer(BY_LENGTH in task.scores) for each in answers))
    group = json.dumps([first.document[column] for column in task.group]) if task.group else ""
    return Unit(first.prompt, str(target), " / ".join(said), values, group)


def task_record(task: AuditTask, theirs: Answers, ours: Answers) -> TaskRecord:
    """Return every measure of a task, over the samples that both models have a value of."""
    both = theirs.units.keys() & ours.units.keys()
    asked = json.dumps([[ours.units[place].prompt, ours.units[place].target] for place in sorted(both)])
    found = {}
    for name, better in ours.better.items():
        measure = Measure(better)
        for place in sorted(both):
            pair = theirs.units[place].values, ours.units[place].values
            if name not in pair[0] or name not in pair[1]:
                continue
            measure.pairs.append((pair[0][name], pair[1][name]))
            if task.group:
                measure.groups.append(ours.units[place].group)
            if name == "calibration":
                measure.confidences.append((pair[0][CONFIDENCE], pair[1][CONFIDENCE]))
        if (record := measured(measure)) is not None:
            found[name] = record
    return TaskRecord(
        suite=task.suite,
        data=task.data,
        documents=hashlib.sha256(asked.encode()).hexdigest(),
        samples=len(both),
        skipped=sorted(ours.skipped),
        measures=found,
    )


def paired_samples(name: str, theirs: Answers, ours: Answers) -> list[dict[str, Any]]:
    """Return every sample, ready for JSON: prompt, target, both answers and their values."""
    found = []
    for place in sorted(theirs.units.keys() & ours.units.keys()):
        first, second = theirs.units[place], ours.units[place]
        sides = {
            side: {"answer": unit.answer, "values": unit.values}
            for side, unit in (("original", first), ("artifact", second))
        }
        group = {"group": second.group} if second.group else {}
        found.append(
            {"task": name, "sample": place, **group, "prompt": second.prompt, "target": second.target, **sides}
        )
    return found
