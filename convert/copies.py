"""Copies: tensors that a checkpoint carries although the model has them under another name.

A tied head, and the embedding and head of an MTP layer, are left out of everything that follows. That is right only
while they hold what the original holds, and no flag in config.json vouches for that: fine-tuning one and saving both
makes a model of two different ones. So they are compared, a few megabytes at a time, up to the first difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from llmc.convert.safetensors_file import DTYPES, StoredTensor

if TYPE_CHECKING:
    from llmc.convert.checkpoint import Checkpoint

_PIECE = 1 << 22  # elements


def equal(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors of one shape hold the same numbers, in whatever type or format each is stored.

    Takes memory only where one is quantized and the other not, or in another way.
    """
    mine, others = checkpoint.parts(name), checkpoint.parts(other)
    if mine.keys() == others.keys() and all(_same(part, others[last]) for last, part in mine.items()):
        return True
    if mine.keys() == others.keys() == {"weight"}:
        return False
    return torch.equal(checkpoint.tensor(name), checkpoint.tensor(other))


def _same(a: StoredTensor, b: StoredTensor) -> bool:
    if a.shape != b.shape:
        return False
    return all(_equal(x, y) for x, y in zip(_pieces(a), _pieces(b), strict=True))


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    if x.dtype == y.dtype and torch.equal(x.view(torch.uint8), y.view(torch.uint8)):
        return True
    # Another float type, or a zero of the other sign.
    return x.is_floating_point() and y.is_floating_point() and torch.equal(x.float(), y.float())


def _pieces(stored: StoredTensor) -> Iterator[torch.Tensor]:
    """Its elements in order, read piece by piece."""
    if stored.strides is not None:
        yield stored.read().flatten()
        return
    count, width = math.prod(stored.shape), DTYPES[stored.dtype].itemsize
    for start in range(0, count, _PIECE):
        size = min(_PIECE, count - start)
        yield replace(stored, shape=(size,), offset=stored.offset + start * width, nbytes=size * width).read()
