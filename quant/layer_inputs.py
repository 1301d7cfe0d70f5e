"""A model's way forward, one layer in memory: what enters every layer, on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch.nn import functional

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import RMSNorm, load_embedding, load_final_norm, load_stored_layer
from llmc.quant.activation_file import MICRO_BATCH_TOKENS, ActivationFile
from llmc.quant.layer_run import positions
from llmc.quant.layer_solver import linears
from llmc.quant.steps import Made

_PART = "calibration-original"
_COPIES = 8  # of the widest activations, that a layer has in memory at once


class LayerInputs:
    """Of the decoder and MTP layers of an original model.

    Args:
        ids: [N, L] int64.
        work_dir: Takes `4 N L hidden` bytes per layer.
        device: Where layers are computed.
        room: Bytes for activations inside of a layer.
    """

    def __init__(
        self, checkpoint: Checkpoint, ids: torch.Tensor, work_dir: Path, device: torch.device, room: int
    ) -> None:
        self.checkpoint, self.spec, self.ids, self.work_dir = checkpoint, checkpoint.spec, ids, work_dir
        self.device, self.room = device, room

    def file(self, index: int) -> ActivationFile:
        """Return the place of what enters a layer, [N, L, hidden]."""
        return ActivationFile(self.work_dir, _PART, index, (*self.ids.shape, self.spec.hidden_size), self.device)

    def gradients(self, index: int, draws: int) -> list[ActivationFile]:
        """Return places for the gradients of that, one for each draw of labels."""
        return [self.file(index).beside(f"{_PART}-gradient-{draw}") for draw in range(draws)]

    @torch.no_grad()
    def compute(self, index: int, report: Callable[[str, int], None]) -> Made:
        """Compute layer `index` on what enters it, which for the first layer are embeddings.

        Args:
            report: Is told the phase, and how many rows are done.
        """
        x = self.file(index)
        if index == 0:
            x.embed(self.ids, self._embedding)
        target = x.following()
        layer = load_stored_layer(self.checkpoint, index).to(self.device)
        widest = max(max(each.in_features, each.out_features) for each in linears(layer).values())
        fitting = self.room // (4 * _COPIES * widest)
        for rows in x.micro_batches(min(fitting, MICRO_BATCH_TOKENS)):
            y = layer(*self.entering(index, rows))
            target.write(rows, functional.pad(y, (0, 0, 0, target.shape[1] - y.shape[1])))
            report(f"forward, layer {index + 1}", rows.stop)
        target.flush()
        return Made([x.path, target.path] if index == 0 else [target.path])

    def entering(self, index: int, rows: slice) -> tuple[torch.Tensor, ...]:
        """Read what a layer is called with: x and positions, behind the embeddings of an MTP layer's tokens."""
        x = self.file(index).read(rows)
        if not self.spec.is_mtp(index):
            return x, positions(x)
        depth = index - self.spec.num_layers
        tokens, x = self.ids[rows, 1 + depth :], x[:, : x.shape[1] - 1 - depth]
        if depth == 0 and self.spec.wiring.mtp_hidden_normed:
            x = self.norm(x)
        return functional.embedding(tokens, self._embedding).to(self.device), x, positions(x)

    @cached_property
    def norm(self) -> RMSNorm:
        """The last one, in front of the head."""
        return load_final_norm(self.checkpoint).to(self.device)

    @cached_property
    def _embedding(self) -> torch.Tensor:
        return load_embedding(self.checkpoint)
