"""Quantises the linear layers of one decoder layer from Hessians, many experts at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from llmc.convert.quantised_weight import QuantisedWeight
from llmc.quant.assign import Assignment
from llmc.quant.gptq import Quantised, round_to_nearest, solve
from llmc.quant.hessian import Hessians, expert_of, observed
from llmc.quant.schemes.scheme import Scheme


@dataclass(frozen=True)
class Job:
    """Layers solved in one batch. `members[e]` read one input and lie below each other as rows of matrix e."""

    scheme: Scheme
    members: list[list[str]]
    expert: bool

    def matrix_bytes(self, modules: dict[str, nn.Linear]) -> int:
        """Working memory for one matrix of the batch, in bytes: Hessian and factors, weights and their copies."""
        shapes = [modules[name].weight.shape for name in self.members[0]]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        return 4 * (5 * columns * columns + 10 * rows * columns)


@dataclass
class Solved:
    weights: dict[str, QuantisedWeight] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)


def jobs(assigned: dict[str, Assignment]) -> list[Job]:
    """Groups GPTQ modules (names inside the layer): same projection of all experts, same input, same scheme."""
    groups: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for name, assignment in assigned.items():
        if assignment.method != "gptq":
            continue
        source = observed(name, assigned)
        expert = expert_of(source)
        kind = f"experts.{expert[1]}" if expert else source
        # Rows that share a scale with their neighbours cannot be stacked.
        alone = name if assignment.scheme.block((1, 1))[0] > 1 else ""
        if expert and alone:
            alone = name.rsplit(".", 1)[1]
        groups.setdefault((kind, assignment.scheme.name, alone), {}).setdefault(source, []).append(name)
    result = []
    for (kind, _, _), members in groups.items():
        first = next(iter(members.values()))[0]
        # Matrices of one batch have one shape: experts of which only some projections match go apart.
        by_suffix: dict[tuple[str, ...], list[list[str]]] = {}
        for names in members.values():
            by_suffix.setdefault(tuple(name.rsplit(".", 1)[1] for name in names), []).append(names)
        result += [Job(assigned[first].scheme, names, kind.startswith("experts.")) for names in by_suffix.values()]
    return result


def solve_layer(
    layer: nn.Module,
    assigned: dict[str, Assignment],
    calibrate: Callable[[str], None],
    few_tokens: Callable[[int], float],
    memory_budget: int,
) -> Solved:
    """Quantises every module in `assigned` (names inside the layer); the layer itself is left as it is.

    calibrate(phase): runs all calibration tokens through the layer; called once per portion of experts whose
    Hessians fit `memory_budget` bytes together.
    few_tokens(inputs): an expert that saw fewer is calibrated on the pooled inputs of the experts beside it.
    """
    solved = Solved()
    modules = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    for name, assignment in assigned.items():
        if assignment.method == "rtn":
            weight = modules[name].weight.float()
            quantised = round_to_nearest(weight, assignment.scheme)
            lost = (quantised.dequantise() - weight).square().sum() / weight.square().sum().clamp_min(1e-30)
            solved.weights[name] = quantised
            solved.reports[name] = {"method": "rtn", "weight_error": lost.item()}
    for number, portion in enumerate(_portions(jobs(assigned), modules, memory_budget)):
        sources = {observed(names[0], assigned) for job in portion for names in job.members}
        hessians = Hessians(layer, sorted(sources))
        calibrate("calibrate" if number == 0 else f"calibrate, portion {number + 1}")
        hessians.detach()
        for job in portion:
            _solve_job(job, modules, hessians, assigned, few_tokens, solved)
    return solved


def _portions(all_jobs: list[Job], modules: dict[str, nn.Linear], budget: int) -> list[list[Job]]:
    """Jobs, cut where a portion's working memory would pass the budget; at least one matrix each."""
    portions: list[list[Job]] = [[]]
    room = budget
    for job in all_jobs:
        size, rest = job.matrix_bytes(modules), job.members
        while rest:
            count = room // size
            if not count and portions[-1]:
                portions.append([])
                room = budget
                continue
            count = max(1, count)
            portions[-1].append(Job(job.scheme, rest[:count], job.expert))
            room -= size * min(count, len(rest))
            rest = rest[count:]
    return [portion for portion in portions if portion]


def _solve_job(
    job: Job,
    modules: dict[str, nn.Linear],
    hessians: Hessians,
    assigned: dict[str, Assignment],
    few_tokens: Callable[[int], float],
    solved: Solved,
) -> None:
    sources = [observed(names[0], assigned) for names in job.members]
    tokens = [hessians.tokens[source] for source in sources]
    hessian = torch.stack([hessians.sums[source] for source in sources])
    weight = torch.stack([torch.cat([modules[n].weight for n in names]) for names in job.members])
    pooled = [False] * len(sources)
    if job.expert:
        pooled = [count < few_tokens(weight.shape[-1]) for count in tokens]
        if any(pooled):
            everything = hessian.sum(0) / max(1, sum(tokens))
            for number, few in enumerate(pooled):
                if few:
                    hessian[number] = everything
    result = solve(weight, hessian, job.scheme)
    for number, names in enumerate(job.members):
        _take_apart(result, number, names, modules, solved.weights)
        damping = result.damping[number].item()
        for name in names:
            report: dict[str, Any] = {
                "method": "gptq",
                "output_error": result.error[number].item(),
                "damping": damping,
            }
            if job.expert:
                report["tokens"] = tokens[number]
            if pooled[number]:
                report["fallback"] = "pooled Hessian"
            if damping == float("inf"):
                report |= {"fallback": "round to nearest", "damping": None}
            solved.reports[name] = report


def _take_apart(
    result: Quantised,
    number: int,
    names: list[str],
    modules: dict[str, nn.Linear],
    weights: dict[str, QuantisedWeight],
) -> None:
    """Cuts matrix `number` back into the layers that were stacked in it."""
    whole, row = result.weight(number), 0
    for name in names:
        rows = modules[name].weight.shape[0]
        if len(names) == 1:
            weights[name] = whole
        else:  # one row per scale block, see `jobs`
            end = row + rows
            codes, scales = whole.codes[row:end].clone(), whole.scales[row:end].clone()
            weights[name] = QuantisedWeight(codes, scales, whole.block, whole.code_type)
            row = end
