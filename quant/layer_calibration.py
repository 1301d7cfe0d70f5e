"""One decoder layer on its way through the calibration text, quantized as the text goes by.

Every linear layer is solved before the text passes it, and passes it as it is then stored: queries, keys and values,
then what reads them, then the output projection, gate and up, and down (true sequential, as in GPTQ). Activations
between them lie on disk, so that a product is computed once, by the quantized weight; attention goes by
micro-batches of rows, an MLP by its tokens, however few of all a routed expert has.

With asymmetric calibration the original layer runs beside it, over the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from llmc.convert.model import DecoderLayer
from llmc.convert.quantized_weight import input_scale
from llmc.convert.spec import CACHE_SCALES
from llmc.quant.assign import Assignment
from llmc.quant.hessian import CalibrationStats
from llmc.quant.layer_run import Begin, Flow, InputFunction, LayerRun, Tick, positions, rows_of
from llmc.quant.layer_solver import Solved, calibrated_sources, linears, solve_modules
from llmc.quant.mlp_calibration import MLPCalibration


@dataclass
class LayerCalibration:
    """The steps of a layer (`dataflow.LayerOps`) on calibration text, each solved before the text passes it.

    Attributes:
        runs: the quantized model, and the original where anything is calibrated asymmetrically
        begin: what of a part of the layer ("self_attn", "mlp", or a linear layer of its own) is to be quantized
        tick: called with a phase and how many tokens of how many it is through
        mlp_calibration: of the same runs
        fp8_cache: whether to find the scales of an FP8 cache
    """

    runs: list[LayerRun]
    begin: Begin
    tick: Tick
    mlp_calibration: MLPCalibration
    fp8_cache: bool = False
    residual: Flow | None = None

    @property
    def solved(self) -> Solved:
        return self.mlp_calibration.solved

    @property
    def layer(self) -> DecoderLayer:
        return self.runs[0].layer

    def entrance(self) -> Flow:
        """What enters a decoder layer."""
        return Flow(lambda run, rows: run.x.read(rows))

    # The steps ---------------------------------------------------------------------------------------------------

    def norm(self, name: str, x: Flow) -> Flow:
        return Flow(lambda run, rows: run.layer.get_submodule(name)(x.read(run, rows)), x.phase)

    def concat(self, x: Flow, y: Flow) -> Flow:
        return Flow(lambda run, rows: torch.cat((x.read(run, rows), y.read(run, rows)), dim=-1))

    def scale(self, x: Flow, factor: float) -> Flow:
        return Flow(lambda run, rows: x.read(run, rows) * factor, x.phase)

    @torch.no_grad()
    def linear(self, name: str, x: Flow) -> Flow:
        """In front of attention: what enters that."""
        self.calibrate_inputs(f"{name} input", self.begin(name), {name: x.read})
        for run in self.runs:
            run.x.create()
            for rows in self._rows(name):
                run.x.write(rows, run.layer.get_submodule(name)(x.read(run, rows)))
        return self.entrance()

    @torch.no_grad()
    def attention(self, x: Flow) -> Flow:
        """Finds the scales of an FP8 cache, too, if it is to be one."""
        attention, assigned, normed = self.layer.self_attn, self.begin("self_attn"), x.read
        self.calibrate_inputs("attention input", assigned, {"self_attn": normed})
        views = {f"self_attn.{name}": _inner(name, normed) for name in attention.inner_inputs()}
        self.calibrate_inputs("attention latent", assigned, views)
        if self.fp8_cache and attention.spec.cache_entry():
            self.layer.self_attn.cache_scales = self._cache_scales(normed)

        def mix(run: LayerRun, rows: slice) -> torch.Tensor:
            x = normed(run, rows)
            mixed: torch.Tensor = run.layer.self_attn.mix(x, positions(x))
            run.mixed.write(rows, mixed)
            return mixed

        for run in self.runs:
            run.mixed.create()
        output = f"self_attn.{attention.spec.output}"
        self.calibrate_inputs("attention", assigned, {output: mix}, everything=True)
        return Flow(lambda run, rows: run.layer.get_submodule(output)(run.mixed.read(rows)), "attention output")

    @torch.no_grad()
    def add(self, x: Flow, y: Flow) -> Flow:
        """The residual: from here on `out`."""
        if y.add_to is not None and x is self.residual:  # which lies there already
            y.add_to([run.out for run in self.runs])
        else:
            for run in self.runs:
                for rows in self._rows(y.phase):
                    run.out.write(rows, x.read(run, rows).add_(y.read(run, rows)))
                run.mixed.delete()
        self.residual = Flow(lambda run, rows: run.out.read(rows))
        return self.residual

    def mlp(self, x: Flow) -> Flow:
        return self.mlp_calibration.begin_with(x.read)

    def finish(self) -> None:
        """What the layer leaves is on disk for good; the rest is gone."""
        for run in self.runs:
            for file in (run.mixed, run.hidden, run.shares):
                file.delete()
            run.out.flush()

    # Attention ---------------------------------------------------------------------------------------------------

    def _cache_scales(self, normed: InputFunction) -> dict[str, float]:
        """Such that the largest magnitude that enters the cache becomes the largest code."""
        run, peaks = self.runs[0], dict[str, float]()
        for rows in self._rows("attention cache"):
            x = normed(run, rows)
            entries = run.layer.self_attn.entries(x, positions(x))
            for name, entry in entries.items():
                peaks[name] = max(peaks.get(name, 0.0), entry.abs().max().item())
        # One latent is both key and value.
        return {name: input_scale(peaks.get(name, peaks["k_scale"])) for name in CACHE_SCALES}

    def calibrate_inputs(
        self, phase: str, assigned: dict[str, Assignment], views: dict[str, InputFunction], everything: bool = False
    ) -> None:
        """Measures sources, by what makes them, and solves what reads them; `everything` is made even if unread."""
        calibrated = calibrated_sources(assigned, linears(self.layer))
        wanted = {name: view for name, view in views.items() if everything or name in calibrated}
        if not wanted:
            return
        measured = CalibrationStats()
        for rows in self._rows(phase):
            for name, view in wanted.items():
                seen = [view(run, rows) for run in self.runs]
                if name in calibrated:
                    measured.add(name, *seen)
        room = self.mlp_calibration.memory_budget // 4
        solve_modules(linears(self.layer), assigned, measured, self.solved, room)

    def _rows(self, phase: str) -> Iterator[slice]:
        return rows_of(self.runs, phase, self.tick)


def _inner(name: str, normed: InputFunction) -> InputFunction:
    return lambda run, rows: run.layer.self_attn.inner_inputs()[name](normed(run, rows))


def calibration_dtype(device: torch.device) -> torch.dtype:
    """What linear layers compute in on their way through the calibration text, where the errors of bfloat16 are nothing
    beside those of the codes: bfloat16 where that is faster. All sums of moments, and the solver, are float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
