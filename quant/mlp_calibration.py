"""The MLP of a layer on calibration text: experts are pruned, and solved many at a time, on the tokens they get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from llmc.convert.model import DecoderLayer, DenseMLP, MixtureOfExperts
from llmc.quant.activation_file import MICRO_BATCH_TOKENS, ActivationFile
from llmc.quant.assign import Assignment
from llmc.quant.hessian import CalibrationStats, HessianStats
from llmc.quant.layer_run import Begin, Flow, InputFunction, LayerRun, Tick, rows_of
from llmc.quant.layer_solver import Solved, calibrated_sources, linears, solve_batches, solve_modules
from llmc.quant.memory import release_memory
from llmc.quant.prune import ExpertScores, prune, survivors

# "shared": gate and up on all tokens, by one Hessian for all experts, down on those routed.
ExpertTokens = Literal["routed", "shared", "all"]


@dataclass(frozen=True)
class MLPBatch:
    """A gated MLP and the calibration tokens it is for; the dense MLP and the shared experts are for all of them.

    Attributes:
        names: of its module in the quantized model, which may be pruned, and in the original
        tokens: [n] int64, numbers of tokens
        weight: [n], of its outputs; None: 1
        routed: whether it is a routed expert
    """

    names: tuple[str, str]
    tokens: torch.Tensor
    weight: torch.Tensor | None = None
    routed: bool = False

    @property
    def name(self) -> str:
        return self.names[0]


BatchInputs = Callable[[MLPBatch, torch.Tensor], list[torch.Tensor]]


@dataclass
class MLPCalibration:
    """The MLP of one layer, and the calibration tokens of its experts.

    Attributes:
        runs: the quantized model, and the original where anything is calibrated asymmetrically
        begin, tick: see `LayerCalibration`
        need_output: whether anything behind this layer is calibrated
        few_tokens: inputs → an expert that saw fewer tokens is calibrated on others, too
        memory_budget: bytes: half for moments, a quarter for the solver, one for what an MLP need not compute twice
        expert_tokens: whether experts are calibrated on the tokens routed to them or on all
        pruning: by what, and to how many per router group, experts are pruned; None: not at all
    """

    runs: list[LayerRun]
    begin: Begin
    tick: Tick
    need_output: bool
    few_tokens: Callable[[int], float]
    memory_budget: int
    expert_tokens: ExpertTokens
    pruning: tuple[str, int] | None = None
    solved: Solved = field(default_factory=Solved)
    shared: HessianStats | None = None
    kept: list[int] | None = None  # the experts that survive, by their original numbers; None: all
    scores: ExpertScores | None = None  # of all experts, where they were pruned

    @property
    def layer(self) -> DecoderLayer:
        return self.runs[0].layer

    @torch.no_grad()
    def begin_with(self, read: InputFunction) -> Flow:
        """What leaves the MLP, which is solved when that is asked for. What enters it is written first: an expert's
        tokens are taken from all over the text.
        """
        for run in self.runs:
            run.hidden.create()
            for rows in rows_of(self.runs, "MLP input", self.tick):
                run.hidden.write(rows, read(run, rows))
        if self.pruning is not None and isinstance(self.layer.mlp, MixtureOfExperts):
            self._prune(*self.pruning)
        written: list[ActivationFile] = []

        def shares(run: LayerRun, rows: slice) -> torch.Tensor:
            if not written:  # nobody adds the shares to a residual as they are
                written.extend(each.shares.create() for each in self.runs)
                self._add_to(written)
            return run.shares.read(rows)

        return Flow(shares, "MLP output", self._add_to)

    def _prune(self, method: str, per_group: int) -> None:
        """Removes experts from the quantized model's layer, by what each does with the tokens routed to it."""
        moe, hidden = self.layer.mlp, self.runs[0].hidden
        assert isinstance(moe, MixtureOfExperts)
        self.scores = scores = ExpertScores.empty(len(moe.experts))
        for number, unit in enumerate(self._counted("score experts", self._experts(moe))):
            assert unit.weight is not None
            for part in _chunks(len(unit.tokens)):
                output = moe.experts[number](moe.entering(hidden.take(unit.tokens[part])))
                scores.add(number, output, unit.weight[part])
        values = scores.by(method)
        values[scores.protected()] = torch.inf
        self.kept = survivors(values, moe.gate.spec.num_groups, per_group)
        prune(self.layer, self.kept)

    @torch.no_grad()
    def _add_to(self, targets: list[ActivationFile]) -> None:
        """Solves the MLP, and adds what leaves it to the target of each run."""
        assigned = self.begin("mlp")
        mlp, every = self.layer.mlp, torch.arange(self.runs[0].x.tokens)
        if not isinstance(mlp, MixtureOfExperts):
            self._units([MLPBatch(("mlp", "mlp"), every)], assigned, targets[0])
        else:
            experts = self._experts(mlp)
            together = self._together(assigned)
            for start in range(0, len(experts), together):
                self._units(experts[start : start + together], assigned, targets[0])
                release_memory()
            if mlp.shared_experts is not None:
                shared = MLPBatch(("mlp.shared_experts",) * 2, every, self._shared_weight(mlp))
                self._units([shared], assigned, targets[0])
        if self.need_output:
            for run, target in zip(self.runs[1:], targets[1:], strict=True):  # the original routes by itself
                for rows in rows_of(self.runs, "original MLP", self.tick):
                    target.write(rows, target.read(rows) + run.layer.mlp(run.hidden.read(rows)))

    def _counted(self, phase: str, units: list[MLPBatch]) -> Iterator[MLPBatch]:
        done, total = 0, sum(len(unit.tokens) for unit in units)
        for unit in units:
            yield unit
            done += len(unit.tokens)
            self.tick(phase, done, total)

    def _experts(self, moe: MixtureOfExperts) -> list[MLPBatch]:
        """Every routed expert with the tokens that the router, as it is now, sends to it."""
        hidden = self.runs[0].hidden
        routed = [moe.route(hidden.read(rows).flatten(0, 1)) for rows in hidden.micro_batches()]
        index, weight = torch.cat([index.short() for index, _ in routed]), torch.cat([weight for _, weight in routed])
        units = []
        for number, old in enumerate(self.kept or range(len(moe.experts))):
            tokens, slot = (found.cpu() for found in torch.where(index == number))
            names = f"mlp.experts.{number}", f"mlp.experts.{old}"
            units.append(MLPBatch(names, tokens, weight[tokens, slot], routed=True))
        return units

    def _shared_weight(self, moe: MixtureOfExperts) -> torch.Tensor | None:
        """[n], of the shared expert's outputs; None: 1."""
        if moe.shared_expert_gate is None:
            return None
        hidden = self.runs[0].hidden
        found = [moe.shared_weight(hidden.read(rows).flatten(0, 1)) for rows in hidden.micro_batches()]
        return torch.cat([each[:, 0] for each in found if each is not None])

    def _together(self, assigned: dict[str, Assignment]) -> int:
        """How many experts can be solved at once."""
        modules = linears(self.layer)
        each = [
            job.moments_bytes(modules) // len(job.members) for job in solve_batches(assigned, modules) if job.expert
        ]
        return max(1, self.memory_budget // 2 // max(each)) if each else len(modules)

    def _units(self, units: list[MLPBatch], assigned: dict[str, Assignment], target: ActivationFile) -> None:
        """Solves the projections of MLPs that are worked on together, and adds their outputs to the target."""
        wanted = calibrated_sources(assigned, linears(self.layer))
        measured = CalibrationStats()
        for unit in self._counted("gate and up", [unit for unit in units if unit.name in wanted]):
            self._measure(measured, unit, unit.name, self._hidden)
        solve_modules(linears(self.layer), assigned, measured, self.solved, self.memory_budget // 4)

        measured = CalibrationStats()
        kept: dict[str, list[torch.Tensor]] = {}
        room = self.memory_budget // 4 if self.need_output else 0
        for unit in self._counted("down", [unit for unit in units if f"{unit.name}.down_proj" in wanted]):
            size = 4 * len(unit.tokens) * _mlp(self.layer, unit.name).down_proj.in_features
            seen = self._measure(measured, unit, f"{unit.name}.down_proj", self._activated)
            if size <= room:
                kept[unit.name] = seen
                room -= size
        solve_modules(linears(self.layer), assigned, measured, self.solved, self.memory_budget // 4)

        for unit in self._counted("MLP output", units if self.need_output else []):
            seen, down = kept.pop(unit.name, []), _mlp(self.layer, unit.name).down_proj
            for number, part in enumerate(_chunks(len(unit.tokens))):
                tokens = unit.tokens[part]
                y = down(seen[number] if seen else self._activated(unit, tokens)[0])
                y = y if unit.weight is None else y * unit.weight[part, None]
                mlp = self.layer.mlp
                target.add(tokens, mlp.leaving(y) if unit.routed and isinstance(mlp, MixtureOfExperts) else y)

    def _hidden(self, unit: MLPBatch, tokens: torch.Tensor) -> list[torch.Tensor]:
        """What the unit's first projections read."""
        found = []
        for run in self.runs:
            x, mlp = run.hidden.take(tokens), run.layer.mlp
            found.append(mlp.entering(x) if unit.routed and isinstance(mlp, MixtureOfExperts) else x)
        return found

    def _activated(self, unit: MLPBatch, tokens: torch.Tensor) -> list[torch.Tensor]:
        """What the unit's down projection reads."""
        return [
            _mlp(run.layer, name).activate(x)
            for run, name, x in zip(self.runs, unit.names, self._hidden(unit, tokens), strict=False)
        ]

    def _measure(self, measured: CalibrationStats, unit: MLPBatch, name: str, view: BatchInputs) -> list[torch.Tensor]:
        """Moments of what `view` makes of a unit's tokens; returns that of the quantized model, chunk by chunk, unless
        other tokens than the unit's own were looked at.

        An expert that saw too few tokens gets the moments of others blended in, as if it had seen enough.
        """
        routed, every = unit.routed, self.runs[0].x.tokens
        shared = routed and name == unit.name and self.expert_tokens != "routed"
        all_tokens = shared or (routed and self.expert_tokens == "all")
        if shared and self.shared is not None:
            measured.moments[name] = self.shared
            return []
        tokens = torch.arange(every) if all_tokens else unit.tokens
        made = []
        for part in _chunks(len(tokens)):
            seen = view(unit, tokens[part])
            measured.add(name, *seen)
            if not all_tokens:
                made.append(seen[0])
        if shared:
            self.shared = measured.moments[name]
        needed = self.few_tokens(_mlp(self.layer, unit.name).up_proj.in_features)
        if routed and len(tokens) < needed:
            others = CalibrationStats(holds_out=False)
            others.add(name, *view(unit, torch.arange(0, every, max(1, int(every / (2 * needed))))))
            measured.blend(name, others.moments[name], needed - len(tokens))
        return made


def _mlp(layer: DecoderLayer, name: str) -> DenseMLP:
    mlp = layer.get_submodule(name)
    assert isinstance(mlp, DenseMLP)
    return mlp


def _chunks(count: int) -> Iterator[slice]:
    """So many tokens at a time as are worked on at once."""
    return (slice(start, start + MICRO_BATCH_TOKENS) for start in range(0, count, MICRO_BATCH_TOKENS))
