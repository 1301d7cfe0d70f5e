"""What a head reads that is the embedding, too: known before the first layer is quantized, whose inputs it makes.

The original model goes through the calibration text once more, layer by layer; what arrives behind the final norm is
summed up. A head of its own can wait for what the quantized layers make of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import compute_in, load_embedding, load_final_norm, load_stored_layer
from llmc.convert.safetensors_file import SafetensorsWriter, read_header
from llmc.quant.activation_file import ActivationFile
from llmc.quant.hessian import HessianStats
from llmc.quant.layer_calibration import calibration_dtype
from llmc.quant.layer_run import advance
from llmc.quant.steps import Made, Step, run_steps

_PART = "head-original"


@dataclass(frozen=True)
class TiedHead:
    """The way to the head.

    Attributes:
        ids: [N, L] of the calibration text
        work_dir: for this alone; what an interrupted pass left there is taken up
        tick: is told a phase, and how many tokens of how many are through a layer
        unchanged, tell: see `run_steps`
    """

    checkpoint: Checkpoint
    ids: torch.Tensor
    work_dir: Path
    device: torch.device
    tick: Callable[[str, int, int], None]
    unchanged: Callable[[], None]
    tell: Callable[[str], None]

    @torch.no_grad()
    def inputs(self) -> HessianStats:
        """The sum of x x' over the text, of inputs x of the head."""
        last = self.checkpoint.spec.num_layers
        steps = [Step("embedding", (), self._embed)]
        steps += [Step(f"{i:05d}", (self._stream(i).path.name,), partial(self._layer, i)) for i in range(last)]
        steps.append(Step("head", (self._stream(last).path.name,), self._sum))
        run_steps(self.work_dir, steps, self.unchanged, self.tell)
        stored = read_header(self._result)
        hessian, largest = stored["hessian"].read().to(self.device), stored["largest"].read().item()
        return HessianStats(hessian, None, self.ids.numel(), largest)

    @property
    def _result(self) -> Path:
        return self.work_dir / "inputs.safetensors"

    def _stream(self, index: int) -> ActivationFile:
        shape = (*self.ids.shape, self.checkpoint.spec.hidden_size)
        return ActivationFile(self.work_dir, _PART, index, shape, self.device)

    def _embed(self) -> Made:
        return Made([self._stream(0).embed(self.ids, load_embedding(self.checkpoint)).path])

    def _layer(self, index: int) -> Made:
        layer = load_stored_layer(self.checkpoint, index).to(self.device)
        compute_in(layer, calibration_dtype(self.device))
        target = advance(layer, self._stream(index), partial(self.tick, f"to the head, layer {index + 1}"))
        return Made([target.path])

    def _sum(self) -> Made:
        stream, norm = self._stream(self.checkpoint.spec.num_layers), load_final_norm(self.checkpoint).to(self.device)
        stats = HessianStats.empty(stream.shape[2], with_cross=False, device=self.device)
        for rows in stream.micro_batches():
            stats.add(norm(stream.read(rows)), name="lm_head")
        with SafetensorsWriter(self._result) as writer:
            writer.add("hessian", stats.hessian)
            writer.add("largest", torch.tensor([stats.amax]))
        return Made(results=[self._result])
