"""One decoder layer on its way through the calibration text, quantized as the text goes by.

Every linear layer is solved before the text passes it, and passes it as it is then stored: queries, keys and values,
then what reads them, then the output projection, gate and up, and down (true sequential, as in GPTQ). Activations
between them lie on disk, so that a product is computed once, by the quantized weight; attention goes by
micro-batches of rows, an MLP by its tokens, however few of all a routed expert has.

With asymmetric calibration the original layer runs beside it, over the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from llmc.convert.model import DecoderLayer, DenseMLP, LatentAttention, MixtureOfExperts
from llmc.convert.spec import CACHE_SCALES
from llmc.quant.activation_file import MICRO_BATCH_TOKENS, ActivationFile
from llmc.quant.assign import Assignment
from llmc.quant.hessian import CalibrationStats, HessianStats, source
from llmc.quant.layer_run import Flow, InputFunction, LayerRun, positions, rows_of
from llmc.quant.layer_solver import Solved, input_scale, linears, solve_batches, solve_modules
from llmc.quant.memory import release_memory
from llmc.quant.prune import ExpertScores, prune, survivors

# "shared": gate and up on all tokens, by one Hessian for all experts, down on those routed.
ExpertTokens = Literal["routed", "shared", "all"]


@dataclass(frozen=True)
class MLPBatch:
    """A gated MLP and the calibration tokens it is for; the dense MLP and the shared experts are for all of them.

    names:  of its module in the quantized model, which may be pruned, and in the original
    tokens: [n] int64, numbers of tokens
    weight: [n], of a routed expert's outputs
    """

    names: tuple[str, str]
    tokens: torch.Tensor
    weight: torch.Tensor | None = None

    @property
    def name(self) -> str:
        return self.names[0]


BatchInputs = Callable[[MLPBatch, torch.Tensor], list[torch.Tensor]]


@dataclass
class LayerCalibration:
    """The steps of a layer (`dataflow.LayerOps`) on calibration text, each solved before the text passes it.

    paths:         the quantized model, and the original where anything is calibrated asymmetrically
    begin:         what of a part of the layer ("self_attn", "mlp", or a linear layer of its own) is to be quantized
    need_output:   whether anything behind this layer is calibrated
    few_tokens:    inputs → an expert that saw fewer tokens is calibrated on others, too
    memory_budget: bytes, three quarters for moments, one for what an MLP need not compute twice
    tick:          called with a phase and how many tokens of how many it is through
    expert_tokens: whether experts are calibrated on the tokens routed to them or on all
    pruning:       by what, and to how many per router group, experts are pruned; None: not at all
    fp8_cache:     whether to find the scales of an FP8 cache
    """

    paths: list[LayerRun]
    begin: Callable[[str], dict[str, Assignment]]
    need_output: bool
    few_tokens: Callable[[int], float]
    memory_budget: int
    tick: Callable[[str, int, int], None]
    expert_tokens: ExpertTokens
    pruning: tuple[str, int] | None = None
    fp8_cache: bool = False
    solved: Solved = field(default_factory=Solved)
    shared: HessianStats | None = None
    kept: list[int] | None = None  # the experts that survive, by their original numbers; None: all
    scores: ExpertScores | None = None  # of all experts, where they were pruned

    @property
    def layer(self) -> DecoderLayer:
        return self.paths[0].layer

    def entrance(self) -> Flow:
        """What enters a decoder layer."""
        return Flow(lambda run, rows: run.x.read(rows))

    # The steps ---------------------------------------------------------------------------------------------------

    def norm(self, name: str, x: Flow) -> Flow:
        return Flow(lambda run, rows: run.layer.get_submodule(name)(x.read(run, rows)), x.phase)

    def concat(self, x: Flow, y: Flow) -> Flow:
        return Flow(lambda run, rows: torch.cat((x.read(run, rows), y.read(run, rows)), dim=-1))

    @torch.no_grad()
    def linear(self, name: str, x: Flow) -> Flow:
        """In front of attention: what enters that."""
        self.calibrate_inputs(f"{name} input", self.begin(name), {name: x.read})
        for run in self.paths:
            run.x.create()
            for rows in self._rows(name):
                run.x.write(rows, run.layer.get_submodule(name)(x.read(run, rows)))
        return self.entrance()

    @torch.no_grad()
    def attention(self, x: Flow) -> Flow:
        """Finds the scales of an FP8 cache, too, if it is to be one."""
        attention, assigned, normed = self.layer.self_attn, self.begin("self_attn"), x.read
        self.calibrate_inputs("attention input", assigned, {"self_attn": normed})
        if isinstance(attention, LatentAttention):
            views: dict[str, InputFunction] = {
                "self_attn.kv_b_proj": lambda run, rows: _latent_attention(run).latent(normed(run, rows))
            }
            if attention.spec.q_lora_rank is not None:
                views["self_attn.q_b_proj"] = lambda run, rows: _latent_attention(run).query_latent(normed(run, rows))
            self.calibrate_inputs("attention latent", assigned, views)

        if self.fp8_cache:
            self.layer.self_attn.cache_scales = self._cache_scales(normed)

        def mix(run: LayerRun, rows: slice) -> torch.Tensor:
            x = normed(run, rows)
            mixed: torch.Tensor = run.layer.self_attn.mix(x, positions(x))
            run.mixed.write(rows, mixed)
            return mixed

        for run in self.paths:
            run.mixed.create()
        self.calibrate_inputs("attention", assigned, {"self_attn.o_proj": mix}, everything=True)
        return Flow(lambda run, rows: run.layer.self_attn.o_proj(run.mixed.read(rows)), "attention output")

    @torch.no_grad()
    def add(self, x: Flow, y: Flow) -> Flow:
        """The residual: from here on `out`."""
        if y.add_to is not None:  # behind attention, so that x is what lies there
            y.add_to([run.out for run in self.paths])
        else:
            for run in self.paths:
                for rows in self._rows(y.phase):
                    run.out.write(rows, x.read(run, rows).add_(y.read(run, rows)))
                run.mixed.delete()
        return Flow(lambda run, rows: run.out.read(rows))

    @torch.no_grad()
    def mlp(self, x: Flow) -> Flow:
        """What it reads is written first: an expert's tokens are taken from all over the text."""
        for run in self.paths:
            run.hidden.create()
            for rows in self._rows("MLP input"):
                run.hidden.write(rows, x.read(run, rows))
        if self.pruning is not None and isinstance(self.layer.mlp, MixtureOfExperts):
            self._prune(*self.pruning)
        written: list[ActivationFile] = []

        def read(run: LayerRun, rows: slice) -> torch.Tensor:
            if not written:  # nobody adds the shares to a residual as they are
                written.extend(each.shares.create() for each in self.paths)
                self._mlp(written)
            return run.shares.read(rows)

        return Flow(read, "MLP output", self._mlp)

    def finish(self) -> None:
        """What the layer leaves is on disk for good; the rest is gone."""
        for run in self.paths:
            for file in (run.mixed, run.hidden, run.shares):
                file.delete()
            run.out.flush()

    # Attention ---------------------------------------------------------------------------------------------------

    def _cache_scales(self, normed: InputFunction) -> dict[str, float]:
        """Such that the largest magnitude that enters the cache becomes the largest code."""
        path, peaks = self.paths[0], dict[str, float]()
        for rows in self._rows("attention cache"):
            x = normed(path, rows)
            entries = path.layer.self_attn.entries(x, positions(x))
            for name, entry in entries.items():
                peaks[name] = max(peaks.get(name, 0.0), entry.abs().max().item())
        # One latent is both key and value.
        return {name: input_scale(peaks.get(name, peaks["k_scale"])) for name in CACHE_SCALES}

    def calibrate_inputs(
        self, phase: str, assigned: dict[str, Assignment], views: dict[str, InputFunction], everything: bool = False
    ) -> None:
        """Measures sources, by what makes them, and solves what reads them; `everything` is made even if unread."""
        calibrated = self._calibrated_sources(assigned)
        wanted = {name: view for name, view in views.items() if everything or name in calibrated}
        if not wanted:
            return
        measured = CalibrationStats()
        for rows in self._rows(phase):
            for name, view in wanted.items():
                seen = [view(path, rows) for path in self.paths]
                if name in calibrated:
                    measured.add(name, *seen)
        self._solve(assigned, measured)

    def _solve(self, assigned: dict[str, Assignment], measured: CalibrationStats) -> None:
        """What reads the sources that were measured."""
        modules = linears(self.layer)
        mine = {name: given for name, given in assigned.items() if source(name, modules) in measured.moments}
        solve_modules(modules, mine, measured, self.solved)

    def _calibrated_sources(self, assigned: dict[str, Assignment]) -> set[str]:
        """What the modules read that are calibrated."""
        modules = linears(self.layer)
        return {source(module, modules) for module, given in assigned.items() if given.calibrated}

    def _rows(self, phase: str) -> Iterator[slice]:
        return rows_of(self.paths, phase, self.tick)

    # The MLP -----------------------------------------------------------------------------------------------------

    def _prune(self, method: str, per_group: int) -> None:
        """Removes experts from the quantized model's layer, by what each does with the tokens routed to it."""
        moe, hidden = self.layer.mlp, self.paths[0].hidden
        assert isinstance(moe, MixtureOfExperts)
        self.scores = scores = ExpertScores.empty(len(moe.experts))
        for number, unit in enumerate(self._counted("score experts", self._experts(moe))):
            assert unit.weight is not None
            for part in _chunks(len(unit.tokens)):
                scores.add(number, moe.experts[number](hidden.take(unit.tokens[part])), unit.weight[part])
        values = scores.by(method)
        values[scores.protected()] = torch.inf
        self.kept = survivors(values, moe.gate.spec.num_groups, per_group)
        prune(self.layer, self.kept)

    @torch.no_grad()
    def _mlp(self, targets: list[ActivationFile]) -> None:
        """Solves the MLP, and adds what leaves it to the target of each run."""
        assigned = self.begin("mlp")
        mlp, every = self.layer.mlp, torch.arange(self.paths[0].x.tokens)
        if not isinstance(mlp, MixtureOfExperts):
            self._units([MLPBatch(("mlp", "mlp"), every)], assigned, targets[0])
        else:
            experts = self._experts(mlp)
            together = self._together(assigned)
            for start in range(0, len(experts), together):
                self._units(experts[start : start + together], assigned, targets[0])
                release_memory()
            if mlp.shared_experts is not None:
                self._units([MLPBatch(("mlp.shared_experts",) * 2, every)], assigned, targets[0])
        if self.need_output:
            for run, target in zip(self.paths[1:], targets[1:], strict=True):  # the original routes by itself
                for rows in self._rows("original MLP"):
                    target.write(rows, target.read(rows) + run.layer.mlp(run.hidden.read(rows)))

    def _counted(self, phase: str, units: list[MLPBatch]) -> Iterator[MLPBatch]:
        done, total = 0, sum(len(unit.tokens) for unit in units)
        for unit in units:
            yield unit
            done += len(unit.tokens)
            self.tick(phase, done, total)

    def _experts(self, moe: MixtureOfExperts) -> list[MLPBatch]:
        """Every routed expert with the tokens that the router, as it is now, sends to it."""
        hidden = self.paths[0].hidden
        routed = [moe.route(hidden.read(rows).flatten(0, 1)) for rows in hidden.micro_batches()]
        index, weight = torch.cat([index.short() for index, _ in routed]), torch.cat([weight for _, weight in routed])
        units = []
        for number, old in enumerate(self.kept or range(len(moe.experts))):
            tokens, slot = (found.cpu() for found in torch.where(index == number))
            names = f"mlp.experts.{number}", f"mlp.experts.{old}"
            units.append(MLPBatch(names, tokens, weight[tokens, slot]))
        return units

    def _together(self, assigned: dict[str, Assignment]) -> int:
        """How many experts can be solved at once."""
        modules = linears(self.layer)
        each = [
            job.moments_bytes(modules) // len(job.members) for job in solve_batches(assigned, modules) if job.expert
        ]
        return max(1, self.memory_budget * 3 // 4 // max(each)) if each else len(modules)

    def _units(self, units: list[MLPBatch], assigned: dict[str, Assignment], target: ActivationFile) -> None:
        """Solves the projections of MLPs that are worked on together, and adds their outputs to the target."""
        wanted = self._calibrated_sources(assigned)
        measured = CalibrationStats()
        for unit in self._counted("gate and up", [unit for unit in units if unit.name in wanted]):
            self._measure(measured, unit, unit.name, self._hidden)
        self._solve(assigned, measured)

        measured = CalibrationStats()
        kept: dict[str, list[torch.Tensor]] = {}
        room = self.memory_budget // 4 if self.need_output else 0
        for unit in self._counted("down", [unit for unit in units if f"{unit.name}.down_proj" in wanted]):
            size = 4 * len(unit.tokens) * _mlp(self.layer, unit.name).down_proj.in_features
            seen = self._measure(measured, unit, f"{unit.name}.down_proj", self._activated)
            if size <= room:
                kept[unit.name] = seen
                room -= size
        self._solve(assigned, measured)

        for unit in self._counted("MLP output", units if self.need_output else []):
            seen, down = kept.pop(unit.name, []), _mlp(self.layer, unit.name).down_proj
            for number, part in enumerate(_chunks(len(unit.tokens))):
                tokens = unit.tokens[part]
                y = down(seen[number] if seen else self._activated(unit, tokens)[0])
                target.add(tokens, y if unit.weight is None else y * unit.weight[part, None])

    def _hidden(self, _: MLPBatch, tokens: torch.Tensor) -> list[torch.Tensor]:
        return [path.hidden.take(tokens) for path in self.paths]

    def _activated(self, unit: MLPBatch, tokens: torch.Tensor) -> list[torch.Tensor]:
        """What the unit's down projection reads."""
        return [
            _mlp(path.layer, name).activate(path.hidden.take(tokens))
            for path, name in zip(self.paths, unit.names, strict=False)
        ]

    def _measure(self, measured: CalibrationStats, unit: MLPBatch, name: str, view: BatchInputs) -> list[torch.Tensor]:
        """Moments of what `view` makes of a unit's tokens; returns that of the quantized model, chunk by chunk, unless
        other tokens than the unit's own were looked at.

        An expert that saw too few tokens gets the moments of others blended in, as if it had seen enough.
        """
        routed, every = unit.weight is not None, self.paths[0].x.tokens
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
        needed = self.few_tokens(_mlp(self.layer, unit.name).gate_proj.in_features)
        if routed and len(tokens) < needed:
            others = CalibrationStats()
            others.add(name, *view(unit, torch.arange(0, every, max(1, int(every / (2 * needed))))))
            measured.blend(name, others.moments[name], needed - len(tokens))
        return made


def _latent_attention(path: LayerRun) -> LatentAttention:
    attention = path.layer.self_attn
    assert isinstance(attention, LatentAttention)
    return attention


def _mlp(layer: DecoderLayer, name: str) -> DenseMLP:
    mlp = layer.get_submodule(name)
    assert isinstance(mlp, DenseMLP)
    return mlp


def calibration_dtype(device: torch.device) -> torch.dtype:
    """What linear layers compute in on their way through the calibration text, where the errors of bfloat16 are nothing
    beside those of the codes: bfloat16 where that is faster. All sums of moments, and the solver, are float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _chunks(count: int) -> Iterator[slice]:
    """So many tokens at a time as are worked on at once."""
    return (slice(start, start + MICRO_BATCH_TOKENS) for start in range(0, count, MICRO_BATCH_TOKENS))
