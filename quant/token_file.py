"""Numbers per token, appended to a file as text goes by, and read as a whole from the mapped file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llmc.quant.durable import no_space


@dataclass(frozen=True)
class TokenFile:
    """float32 [n, W], or int64 [n]; what is read comes on `device`."""

    path: Path
    device: torch.device

    def append(self, x: torch.Tensor) -> None:
        """MachineError where the disk is full."""
        try:
            with self.path.open("ab") as file:
                file.write(x.cpu().contiguous().numpy().data)
        except OSError as error:
            raise no_space(self.path, error) from error

    def read(self, width: int) -> torch.Tensor:
        """[n, width]; on the CPU no copy: the system reads it as it is used, and need not keep it."""
        return torch.from_numpy(np.memmap(self.path, np.float32, "r+").reshape(-1, width)).to(self.device)

    def read_ids(self) -> torch.Tensor:
        """[n]"""
        return torch.from_numpy(np.fromfile(self.path, np.int64)).to(self.device)
