"""What two-sided rounding needs to know of a layer's outputs: sums of g g' over the gradients with respect to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmc.convert.safetensors_file import read_header
from llmc.convert.tensor_names import ModuleName, module_of, part_of

WIDEST = 2048  # rows of a block; a layer with more has several on the diagonal, and nothing outside of them


def block_sizes(rows: int) -> list[int]:
    """Rows of each block of a layer's output Hessian, as even as they can be."""
    count = -(-rows // WIDEST)
    return [rows * (i + 1) // count - rows * i // count for i in range(count)]


@dataclass(frozen=True)
class OutputHessians:
    """Of the modules of one layer, on the disk. Experts share those of their projection."""

    path: Path

    def blocks(self, module: str, device: torch.device) -> list[torch.Tensor]:
        """Those on the diagonal of a module, by its name inside its layer, float32; [] if no token showed anything."""
        key = key_of(module)
        stored = read_header(self.path) if self.path.exists() else {}
        numbers = sorted(int(part_of(name)) for name in stored if module_of(name) == key)
        return [stored[f"{key}.{number}"].read().to(device) for number in numbers]


def key_of(module: str) -> str:
    """A module inside its layer, whichever expert it belongs to."""
    return str(replace(ModuleName.parse(module), expert=None))
