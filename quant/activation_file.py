"""Activations between two layers, on disk: a layer's input is read and its output written in micro-batches."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from llmc.quant.durable import no_space
from llmc.quant.overflow import refuse_overflow

MICRO_BATCH_TOKENS = 8192
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ActivationFile:
    """float32 [N, L, W], memory-mapped; `part` says whose activations, `layer` at which layer's input they are.

    What is read comes on `device`; what is written may be anywhere.
    """

    directory: Path
    part: str
    layer: int
    shape: tuple[int, int, int]
    device: torch.device = CPU

    @property
    def path(self) -> Path:
        return self.directory / f"{self.part}-{self.layer:05d}.f32"

    @property
    def tokens(self) -> int:
        return self.shape[0] * self.shape[1]

    def create(self) -> ActivationFile:
        """Takes the disk space at once: a mapped file that finds the disk full later would end the process."""
        with self.path.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, max(1, 4 * math.prod(self.shape)))
            except OSError as error:
                raise no_space(self.path, error) from error
        return self

    def embed(self, ids: torch.Tensor, table: torch.Tensor) -> ActivationFile:
        """Create it, with the rows of `table` that ids [N, L] name."""
        self.create()
        for row, tokens in enumerate(ids):
            self.write(slice(row, row + 1), functional.embedding(tokens, table)[None])
        self.flush()
        return self

    def beside(self, part: str, width: int | None = None) -> ActivationFile:
        """Another part of the same layer, over the same tokens."""
        return replace(self, part=part, shape=(*self.shape[:2], width or self.shape[2]))

    def following(self) -> ActivationFile:
        """The next layer's input, empty; a half-written one of an interrupted run is overwritten."""
        return replace(self, layer=self.layer + 1).create()

    def _map(self) -> torch.Tensor:
        return torch.from_numpy(np.memmap(self.path, np.float32, "r+", shape=self.shape))

    def micro_batches(self, tokens: int = MICRO_BATCH_TOKENS) -> Iterator[slice]:
        """Rows in order, so many at a time as are worked on at once."""
        step = max(1, tokens // self.shape[1])
        for start in range(0, self.shape[0], step):
            yield slice(start, min(start + step, self.shape[0]))

    def read(self, rows: slice) -> torch.Tensor:
        """[n, L, W]"""
        return self._map()[rows].to(self.device, copy=True)

    def write(self, rows: slice, x: torch.Tensor) -> None:
        """OverflowInModelError for what is too large for the next norm."""
        refuse_overflow(x, self._described())
        self._map()[rows] = x

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, W] of the tokens, by their numbers in [0, N L)."""
        return self._map().flatten(0, 1)[tokens.cpu()].to(self.device)

    def add(self, tokens: torch.Tensor, x: torch.Tensor) -> None:
        """Adds [n, W] to the tokens, each of which occurs once; OverflowInModelError as for `write`."""
        refuse_overflow(x, self._described())
        self._map().flatten(0, 1).index_add_(0, tokens.cpu(), x.cpu())

    def _described(self) -> str:
        model = "original" if "original" in self.part else "quantized"
        return f"the {model} model's activations over the {'calibration' if 'cal' in self.part else 'check'} text"

    def flush(self) -> None:
        np.memmap(self.path, np.float32, "r+", shape=self.shape).flush()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
