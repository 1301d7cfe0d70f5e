"""Activations between two layers, on disk: a layer's input is read and its output written in micro-batches."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmc.errors import MachineError

MICRO_BATCH_TOKENS = 8192


def no_space(path: Path, error: OSError) -> Exception:
    """A MachineError where the disk is full, else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError(f"{path}: no space left on the disk; free some and build again, finished layers are kept")
    return error


@dataclass(frozen=True)
class Stream:
    """float32 [N, L, H], memory-mapped; `part` says whose activations, `layer` whose input they are."""

    directory: Path
    part: str
    layer: int
    shape: tuple[int, int, int]

    @property
    def path(self) -> Path:
        return self.directory / f"{self.part}-{self.layer:05d}.f32"

    def create(self) -> None:
        """Takes the disk space at once: a mapped file that finds the disk full later would end the process."""
        with self.path.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(self.shape))
            except OSError as error:
                raise no_space(self.path, error) from error

    def following(self) -> Stream:
        """The next layer's input, empty; a half-written one of an interrupted run is overwritten."""
        stream = Stream(self.directory, self.part, self.layer + 1, self.shape)
        stream.create()
        return stream

    def _map(self) -> np.memmap:
        return np.memmap(self.path, np.float32, "r+", shape=self.shape)

    def micro_batches(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, their activations [n, L, H]) in order; only one micro-batch is in memory."""
        step = max(1, MICRO_BATCH_TOKENS // self.shape[1])
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            yield rows, self.read(rows)

    def read(self, rows: slice) -> torch.Tensor:
        return torch.from_numpy(np.array(self._map()[rows]))

    def write(self, rows: slice, x: torch.Tensor) -> None:
        self._map()[rows] = x.numpy()

    def flush(self) -> None:
        self._map().flush()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
