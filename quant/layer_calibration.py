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
from llmc.quant.layer_solver import Solved, input_scale, linears, solve_batches, solve_modules
from llmc.quant.memory import release_memory
from llmc.quant.prune import ExpertScores, prune, survivors

# "shared": gate and up on all tokens, by one Hessian for all experts, down on those routed.
ExpertTokens = Literal["routed", "shared", "all"]


@dataclass(frozen=True)
class LayerRun:
    """One model's way through the layer: its layer, and its activations.

    entry: what an MTP layer's `eh_proj` joins with an embedding; of a decoder layer x itself
    x:     what enters attention
    out:   what leaves the layer; before the MLP has added its share, the residual
    """

    layer: DecoderLayer
    entry: ActivationFile
    x: ActivationFile
    out: ActivationFile

    @property
    def mixed(self) -> ActivationFile:
        """What `o_proj` reads."""
        return self.x.beside(f"{self.x.part}-mixed", self.layer.self_attn.o_proj.in_features)

    @property
    def hidden(self) -> ActivationFile:
        """What the MLP reads."""
        return self.x.beside(f"{self.x.part}-hidden")

    def normed(self, rows: slice) -> torch.Tensor:
        """What attention reads."""
        x: torch.Tensor = self.layer.get_submodule("input_layernorm")(self.x.read(rows))
        return x


InputFunction = Callable[[LayerRun, slice], torch.Tensor]


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
    """
    paths:         the quantized model, and the original where anything is calibrated asymmetrically
    few_tokens:    inputs → an expert that saw fewer tokens is calibrated on others, too
    memory_budget: bytes, three quarters for moments, one for what an MLP need not compute twice
    tick:          called with a phase and how many tokens of how many it is through
    expert_tokens: whether experts are calibrated on the tokens routed to them or on all
    """

    paths: list[LayerRun]
    few_tokens: Callable[[int], float]
    memory_budget: int
    tick: Callable[[str, int, int], None]
    expert_tokens: ExpertTokens
    solved: Solved = field(default_factory=Solved)
    shared: HessianStats | None = None
    kept: list[int] | None = None  # the experts that survive, by their original numbers; None: all

    @property
    def layer(self) -> DecoderLayer:
        return self.paths[0].layer

    @torch.no_grad()
    def attention(self, assigned: dict[str, Assignment], fp8_cache: bool = False) -> None:
        """From the layer's input to what its MLP reads; finds the scales of an FP8 cache, if it is to be one."""
        attention = self.layer.self_attn
        self.calibrate_inputs("attention input", assigned, {"self_attn": LayerRun.normed})
        if isinstance(attention, LatentAttention):
            views: dict[str, InputFunction] = {
                "self_attn.kv_b_proj": lambda path, rows: _latent_attention(path).latent(path.normed(rows))
            }
            if attention.spec.q_lora_rank is not None:
                views["self_attn.q_b_proj"] = lambda path, rows: _latent_attention(path).query_latent(path.normed(rows))
            self.calibrate_inputs("attention latent", assigned, views)

        if fp8_cache:
            self.layer.self_attn.cache_scales = self._cache_scales()

        def mix(path: LayerRun, rows: slice) -> torch.Tensor:
            x = path.normed(rows)
            mixed: torch.Tensor = path.layer.self_attn.mix(x, positions(x))
            path.mixed.write(rows, mixed)
            return mixed

        for path in self.paths:
            path.mixed.create()
        self.calibrate_inputs("attention", assigned, {"self_attn.o_proj": mix}, everything=True)
        for path in self.paths:
            path.hidden.create()
            for rows in self._rows("attention output"):
                x = path.x.read(rows).add_(path.layer.self_attn.o_proj(path.mixed.read(rows)))
                path.out.write(rows, x)
                path.hidden.write(rows, path.layer.get_submodule("post_attention_layernorm")(x))
            path.mixed.delete()

    def _cache_scales(self) -> dict[str, float]:
        """Such that the largest magnitude that enters the cache becomes the largest code."""
        path, peaks = self.paths[0], dict[str, float]()
        for rows in self._rows("attention cache"):
            x = path.normed(rows)
            entries = path.layer.self_attn.entries(x, positions(x))
            for name, entry in entries.items():
                peaks[name] = max(peaks.get(name, 0.0), entry.abs().max().item())
        # One latent is both key and value.
        return {name: input_scale(peaks.get(name, peaks["k_scale"])) for name in CACHE_SCALES}

    @torch.no_grad()
    def prune(self, method: str, per_group: int) -> ExpertScores:
        """Removes experts from the quantized model's layer, by what each does with the tokens routed to it."""
        moe, hidden = self.layer.mlp, self.paths[0].hidden
        assert isinstance(moe, MixtureOfExperts)
        scores = ExpertScores.empty(len(moe.experts))
        for number, unit in enumerate(self._counted("score experts", self._experts(moe))):
            assert unit.weight is not None
            for part in _chunks(len(unit.tokens)):
                scores.add(number, moe.experts[number](hidden.take(unit.tokens[part])), unit.weight[part])
        values = scores.by(method)
        values[scores.protected()] = torch.inf
        self.kept = survivors(values, moe.gate.spec.num_groups, per_group)
        prune(self.layer, self.kept)
        return scores

    @torch.no_grad()
    def mlp(self, assigned: dict[str, Assignment], need_output: bool) -> None:
        """From what the MLP reads to what leaves the layer."""
        mlp, every = self.layer.mlp, torch.arange(self.paths[0].x.tokens)
        if not isinstance(mlp, MixtureOfExperts):
            self._units([MLPBatch(("mlp", "mlp"), every)], assigned, need_output)
        else:
            experts = self._experts(mlp)
            together = self._together(assigned)
            for start in range(0, len(experts), together):
                self._units(experts[start : start + together], assigned, need_output)
                release_memory()
            if mlp.shared_experts is not None:
                self._units([MLPBatch(("mlp.shared_experts",) * 2, every)], assigned, need_output)
        for path in self.paths[1:] if need_output else []:  # the original routes by itself
            for rows in self._rows("original MLP"):
                path.out.write(rows, path.out.read(rows) + path.layer.mlp(path.hidden.read(rows)))
        for path in self.paths:
            path.hidden.delete()
            path.out.flush()

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
        stream = self.paths[0].x
        for rows in stream.micro_batches():
            yield rows
            self.tick(phase, rows.stop * stream.shape[1], stream.tokens)

    # The MLP -----------------------------------------------------------------------------------------------------

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

    def _units(self, units: list[MLPBatch], assigned: dict[str, Assignment], need_output: bool) -> None:
        """Solves the projections of MLPs that are worked on together, and adds their outputs."""
        wanted = self._calibrated_sources(assigned)
        measured = CalibrationStats()
        for unit in self._counted("gate and up", [unit for unit in units if unit.name in wanted]):
            self._measure(measured, unit, unit.name, self._hidden)
        self._solve(assigned, measured)

        measured = CalibrationStats()
        kept: dict[str, list[torch.Tensor]] = {}
        room = self.memory_budget // 4 if need_output else 0
        for unit in self._counted("down", [unit for unit in units if f"{unit.name}.down_proj" in wanted]):
            size = 4 * len(unit.tokens) * _mlp(self.layer, unit.name).down_proj.in_features
            seen = self._measure(measured, unit, f"{unit.name}.down_proj", self._activated)
            if size <= room:
                kept[unit.name] = seen
                room -= size
        self._solve(assigned, measured)

        for unit in self._counted("MLP output", units if need_output else []):
            seen, down = kept.pop(unit.name, []), _mlp(self.layer, unit.name).down_proj
            for number, part in enumerate(_chunks(len(unit.tokens))):
                tokens = unit.tokens[part]
                y = down(seen[number] if seen else self._activated(unit, tokens)[0])
                self.paths[0].out.add(tokens, y if unit.weight is None else y * unit.weight[part, None])

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


def positions(x: torch.Tensor) -> torch.Tensor:
    """[B, S], of whole rows x [B, S, H]."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)


def _chunks(count: int) -> Iterator[slice]:
    """So many tokens at a time as are worked on at once."""
    return (slice(start, start + MICRO_BATCH_TOKENS) for start in range(0, count, MICRO_BATCH_TOKENS))
