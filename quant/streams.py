"""Activations of a pass, on disk: what enters each layer of the original and of the quantized model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from llmc.convert.model import DecoderLayer
from llmc.convert.spec import ModelSpec
from llmc.quant.activation_file import ActivationFile
from llmc.quant.ends import Ends
from llmc.quant.layer_run import advance


@dataclass(frozen=True)
class Streams:
    """Of several texts, each through one of the two models.

    Attributes:
        ids: Name of a stream → token ids [N, L]; those with "original" in their name go through the original model.
        device: Where layers are run.
    """

    spec: ModelSpec
    work_dir: Path
    ids: Mapping[str, torch.Tensor]
    device: torch.device

    def entering(self, part: str, index: int) -> ActivationFile:
        """Return the place of what enters a layer, [N, L, hidden]."""
        rows, length = self.ids[part].shape
        return ActivationFile(self.work_dir, part, index, (rows, length, self.spec.hidden_size), self.device)

    def embed(self, ends: Ends) -> None:
        """Write what enters the first layer."""
        for is_original in (False, True):
            embedding = ends.embedding(is_original)
            for part, ids in self.ids.items():
                if is_original == ("original" in part):
                    self.entering(part, 0).embed(ids, embedding)

    def advance(self, layer: DecoderLayer, part: str, index: int, report: Callable[[str, int, int], None]) -> None:
        """Take one text through a decoder layer, into the next layer's input."""
        advance(layer, self.entering(part, index), partial(report, f"forward {part}"))

    def forget(self, index: int) -> None:
        """Drop the inputs of a layer once the one behind it is finished, too; MTP layers still need those of the first
        of them, and the layer before it.
        """
        if 0 <= index < self.spec.num_layers - 1:
            for part in self.ids:
                self.entering(part, index).delete()
