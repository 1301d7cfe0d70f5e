"""Parameters and bytes of a checkpoint's tensors, from its headers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmc.convert.checkpoint import Checkpoint


@dataclass(frozen=True)
class Size:
    parameters: int
    bytes: int

    def __add__(self, other: Size) -> Size:
        return Size(self.parameters + other.parameters, self.bytes + other.bytes)


def tensor_sizes(checkpoint: Checkpoint) -> dict[str, Size]:
    """By logical name; the scales of a quantized weight count as bytes, not as parameters."""
    return {
        name: Size(math.prod(checkpoint.shape(name)), sum(part.nbytes for part in checkpoint.parts(name).values()))
        for name in checkpoint.names()
    }


def sizes_by_role(checkpoint: Checkpoint) -> dict[str, Size]:
    roles: dict[str, Size] = {}
    for name, size in tensor_sizes(checkpoint).items():
        role = checkpoint.role(name)
        roles[role] = roles.get(role, Size(0, 0)) + size
    return roles
