"""Quantizes linear layers from the moments of their inputs, many experts at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from llmc.contracts.layer_record import ModuleReport
from llmc.convert.model import Linear
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.convert.tensor_names import ModuleName
from llmc.quant.activation_file import CPU
from llmc.quant.assign import ASYMMETRIC, Assignment
from llmc.quant.gptq import Quantized, round_to_nearest, solve
from llmc.quant.held_out import judge
from llmc.quant.hessian import HELD_OUT, CalibrationStats, source
from llmc.quant.output_hessians import OutputHessians, block_sizes
from llmc.quant.schemes.base import Scheme
from llmc.quant.two_sided import solve_two_sided

# Weights in one batch: larger ones only fall out of the processor's caches, and each of their temporaries is fetched
# from and given back to the system. A GPU is busy with many.
_TOGETHER, _TOGETHER_ON_GPU = 1 << 22, 1 << 27


@dataclass(frozen=True)
class SolveBatch:
    """Layers solved in one batch. `members[e]` read one input and lie below each other as rows of matrix e."""

    scheme: Scheme
    method: str
    members: list[list[str]]
    expert: bool

    @property
    def asymmetric(self) -> bool:
        return self.method in ASYMMETRIC

    @property
    def two_sided(self) -> bool:
        return self.method == "yaqa"

    def shape(self, modules: dict[str, Linear]) -> tuple[int, int]:
        """[out, in] of each matrix of the batch."""
        rows = sum(modules[name].out_features for name in self.members[0])
        return rows, modules[self.members[0][0]].in_features

    def moments_bytes(self, modules: dict[str, Linear]) -> int:
        """What is measured for all of the batch before any of it is solved."""
        columns = self.shape(modules)[1]
        return 4 * (1 + self.asymmetric) * columns * (columns + HELD_OUT) * len(self.members)

    def together(self, modules: dict[str, Linear], room: int, on_gpu: bool) -> int:
        """How many matrices are worked on at once in `room` bytes; one, if there is room for none."""
        most = (_TOGETHER_ON_GPU if on_gpu else _TOGETHER) // math.prod(self.shape(modules))
        return min(len(self.members), max(1, min(most, room // self._bytes_of_one(modules))))

    def working_bytes(self, modules: dict[str, Linear], room: int, on_gpu: bool) -> int:
        """What those take while they are solved."""
        return self.together(modules, room, on_gpu) * self._bytes_of_one(modules)

    def _bytes_of_one(self, modules: dict[str, Linear]) -> int:
        """Of a matrix the weights and their copies, the Hessian and its factors, float32."""
        rows, columns = self.shape(modules)
        copies = 11 + 2 * (not self.scheme.symmetric)
        least = 4 * columns * ((6 + 2 * self.asymmetric) * columns + copies * rows)
        if not self.two_sided:
            return least
        blocks = [size for name in self.members[0] for size in block_sizes(modules[name].out_features)]
        more = 2 + (not self.scheme.symmetric)
        return least + 4 * (8 * sum(size**2 for size in blocks) + more * columns * rows)


@dataclass
class Solved:
    """What becomes of a layer's modules, by their names inside it.

    Attributes:
        outputs: what is known of their outputs, for two-sided rounding; None: nothing
    """

    outputs: OutputHessians | None = None
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    reports: dict[str, ModuleReport] = field(default_factory=dict)


def solve_batches(assigned: dict[str, Assignment], modules: dict[str, Linear]) -> list[SolveBatch]:
    """Groups calibrated modules (names inside the layer): same projection of all experts, same input, same scheme."""
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name, assignment in assigned.items():
        if not assignment.calibrated:
            continue
        read, parsed = source(name, modules), ModuleName.parse(name)
        kind = read if parsed.expert is None else str(replace(ModuleName.parse(read), expert=None))
        # Rows that share a scale with their neighbors cannot be stacked.
        alone = parsed.projection if assignment.scheme.block((2, 2))[0] > 1 else ""
        key = kind, assignment.scheme.name, assignment.method, alone
        groups.setdefault(key, {}).setdefault(read, []).append(name)
    result = []
    for members in groups.values():
        first = next(iter(members.values()))[0]
        given, of_experts = assigned[first], ModuleName.parse(first).expert is not None
        # Matrices of one batch have one shape: experts of which only some projections match go apart.
        by_suffix: dict[tuple[str, ...], list[list[str]]] = {}
        for names in members.values():
            by_suffix.setdefault(tuple(ModuleName.parse(name).projection for name in names), []).append(names)
        for matrices in by_suffix.values():
            result.append(SolveBatch(given.scheme, given.method, matrices, of_experts))
    return result


def linears(layer: nn.Module) -> dict[str, Linear]:
    """Linear layers by their names inside a decoder layer."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, Linear)}


def calibrated_sources(assigned: dict[str, Assignment], modules: dict[str, Linear]) -> set[str]:
    """What the modules read that are calibrated."""
    return {source(name, modules) for name, given in assigned.items() if given.calibrated}


def round_modules(modules: dict[str, Linear], assigned: dict[str, Assignment], solved: Solved) -> None:
    """Rounds what needs no calibration to nearest, in `modules` too."""
    _round(modules, {name: given for name, given in assigned.items() if not given.calibrated}, solved, {})


def _round(
    modules: dict[str, Linear], assigned: dict[str, Assignment], solved: Solved, peaks: dict[str, float]
) -> None:
    for names in _rounded_together(modules, assigned):
        weights = [modules[name].full() for name in names]
        rounded = round_to_nearest(weights[0] if len(names) == 1 else torch.cat(weights), assigned[names[0]].scheme)
        start = 0
        for name, weight in zip(names, weights, strict=True):
            quantized = rounded if len(names) == 1 else _rows(rounded, slice(start, start := start + len(weight)))
            quantized = _with_input_scale(quantized, peaks.get(name, 0.0))
            modules[name].hold(quantized)
            lost = (quantized.dequantize() - weight).square().sum() / weight.square().sum().clamp_min(1e-30)
            solved.weights[name] = quantized.to(CPU)
            solved.reports[name] = ModuleReport(method="rtn", weight_error=lost.item())


def _rounded_together(modules: dict[str, Linear], assigned: dict[str, Assignment]) -> list[list[str]]:
    """Each alone, but for those of one input that share the scale of a whole matrix."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, assignment in assigned.items():
        shared = source(name, modules) if assignment.scheme.scaled_as_a_whole else name
        groups.setdefault((shared, assignment.scheme.name), []).append(name)
    return list(groups.values())


def _rows(weight: QuantizedWeight, rows: slice) -> QuantizedWeight:
    """Some rows of a matrix whose scales belong to one row each."""
    levels = weight.two_level and replace(weight.two_level, codes=weight.two_level.codes[rows].clone())
    return replace(weight, qweight=weight.qweight[rows].clone(), scales=weight.scales[rows].clone(), two_level=levels)


def solve_modules(
    modules: dict[str, Linear], assigned: dict[str, Assignment], measured: CalibrationStats, solved: Solved, room: int
) -> None:
    """Quantizes the modules of `assigned` whose sources were measured, in `modules` too, from their moments; as many at
    once as there is `room` for, in bytes.
    """
    mine = {name: given for name, given in assigned.items() if source(name, modules) in measured.moments}
    for job in solve_batches(mine, modules):
        if job.method == "rtn":  # measured for the sake of the inputs' scale
            rounded = {name: Assignment(job.scheme, "rtn") for names in job.members for name in names}
            _round(modules, rounded, solved, {name: measured.moments[source(name, modules)].amax for name in rounded})
            continue
        first = measured.moments[source(job.members[0][0], modules)]
        together = job.together(modules, room, first.hessian.is_cuda)
        for start in range(0, len(job.members), together):
            _solve_job(replace(job, members=job.members[start : start + together]), modules, measured, solved)


def _solve_job(job: SolveBatch, modules: dict[str, Linear], measured: CalibrationStats, solved: Solved) -> None:
    sources = [source(names[0], modules) for names in job.members]
    moments = [measured.moments[name] for name in sources]
    different = moments[:1] if all(each is moments[0] for each in moments) else moments
    hessian = torch.stack([each.symmetric() for each in different])
    crosses = [each.cross_covariance for each in different if job.asymmetric and each.cross_covariance is not None]
    weight = torch.stack([torch.cat([modules[n].full() for n in names]) for names in job.members])
    heights = [modules[name].out_features for name in job.members[0]]
    cross, outputs = torch.stack(crosses) if crosses else None, _output_hessian(job, solved, weight.device)
    if outputs:
        result = solve_two_sided(weight, hessian, outputs, job.scheme, cross, heights)
    else:
        result = solve(weight, hessian, job.scheme, cross, heights)
    for number, names in enumerate(job.members):
        judged = judge(result, number, weight[number], moments[number].held_out, heights, outputs)
        weights = _take_apart(result, number, names, modules, moments[number].amax)
        damping, fallback = result.damping[number].item(), None
        if sources[number] in measured.blended:
            fallback = "all-token Hessian blended in"
        if damping == float("inf"):
            fallback = "round to nearest"
        report = ModuleReport(
            method="gptaq" if job.two_sided and not outputs else job.method,
            damping=None if damping == float("inf") else damping,
            tokens=moments[number].tokens if job.expert else None,
            fallback=fallback,
        )
        for place, name in enumerate(names):
            modules[name].hold(weights[name])
            solved.weights[name] = weights[name].to(CPU)
            known: dict[str, object] = {
                "output_error": result.error[number, place].item(),
                "nearest_error": result.nearest_error[number, place].item(),
            }
            rounded = ""
            if result.rounded[number, place]:
                rounded = f"rounded to nearest, which loses less than {report.method}"
            if judged is not None:
                known |= {"held_out_error": judged.error[place], "held_out_nearest_error": judged.nearest_error[place]}
                if judged.overfits[place]:
                    known["output_error"] = known["nearest_error"]
                    rounded = f"rounded to nearest, since {report.method} overfits: {moments[number].tokens} tokens"
            if rounded:
                known["fallback"] = rounded if fallback is None else f"{fallback}; {rounded}"
            solved.reports[name] = report.model_copy(update=known)


def _output_hessian(job: SolveBatch, solved: Solved, device: torch.device) -> list[torch.Tensor]:
    """Blocks for the rows of every matrix; [] unless it is two-sided and something is known of all of its layers."""
    if solved.outputs is None or not job.two_sided:
        return []
    found = [solved.outputs.blocks(name, device) for name in job.members[0]]
    return [block for blocks in found for block in blocks] if all(found) else []


def _take_apart(
    result: Quantized,
    number: int,
    names: list[str],
    modules: dict[str, Linear],
    peak: float,
) -> dict[str, QuantizedWeight]:
    """Cuts matrix `number` back into the layers that were stacked in it."""
    weights: dict[str, QuantizedWeight] = {}
    start = 0
    for name in names:
        end = start + modules[name].out_features
        weight = result.weight(number, slice(start, end) if len(names) > 1 else slice(None))
        weights[name] = _with_input_scale(weight, peak)
        start = end
    return weights


def _with_input_scale(weight: QuantizedWeight, peak: float) -> QuantizedWeight:
    """A weight whose inputs are rounded by a scale found in calibration, with that."""
    return replace(weight, activations=weight.activations and weight.activations.at(peak))
