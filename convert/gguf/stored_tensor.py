"""Tensors of a checkpoint that lie in a GGUF file: rows in another order, in blocks, decoded when they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmc.convert.safetensors_file import DTYPES, StoredTensor

if TYPE_CHECKING:
    from llmc.convert.gguf.arrangement import Rows

FLOATS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # types of llama.cpp's whose bytes are the numbers themselves


@dataclass(frozen=True, eq=False)
class Piece:
    """What one tensor of the file, or one expert's part of it, has of a tensor of ours.

    Attributes:
        kind: llama.cpp's name of the type
        shape: of the numbers, [rows, columns], or [heads, columns, rows of a head] where `transposed`
        offset: in the file, in bytes
        nbytes: there
        rows: which rows of ours these are; None: all, in this order
    """

    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    rows: Rows | None = None
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class GgufTensor(StoredTensor):
    """`dtype` is what it is read as, and `nbytes` how many that takes; `offset` is where its first piece lies."""

    pieces: tuple[Piece, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether its bytes lie in the file as they are read, one behind the other."""
        return len(self.pieces) == 1 and self.pieces[0].kind in FLOATS

    def read(self) -> torch.Tensor:
        """Decode it; rows in the order of checkpoints."""
        dtype = DTYPES[self.dtype]
        if len(self.pieces) == 1 and self.pieces[0].rows is None and not self.pieces[0].transposed:
            return self._decoded(self.pieces[0]).to(dtype).reshape(self.shape)
        whole = torch.empty(self.shape, dtype=dtype)
        for piece in self.pieces:
            values = self._decoded(piece).reshape(piece.shape)
            if piece.transposed:
                values = values.mT
            values = values.reshape(-1, *self.shape[1:]).to(dtype)
            if piece.rows is None:
                whole.copy_(values)
            else:
                whole[torch.from_numpy(piece.rows)] = values
        return whole

    def _decoded(self, piece: Piece) -> torch.Tensor:
        where = StoredTensor(self.name, self.file, "U8", (piece.nbytes,), piece.offset, piece.nbytes)
        data = where.read()
        if piece.kind in FLOATS:
            return data.view(DTYPES[piece.kind])
        import gguf

        kind = gguf.GGMLQuantizationType[piece.kind]
        blocks = data.numpy().reshape(gguf.quant_shape_to_byte_shape(piece.shape, kind))
        return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(blocks, kind)))


def decoded_type(kinds: set[str]) -> str:
    """Return the safetensors dtype that such pieces are read as: their own, or float32."""
    return kinds.pop() if len(kinds) == 1 and kinds <= FLOATS.keys() else "F32"


def of_pieces(name: str, path: Path, shape: tuple[int, ...], pieces: tuple[Piece, ...]) -> GgufTensor:
    """Return one of our tensors that lies in the file at `path`."""
    dtype = decoded_type({piece.kind for piece in pieces})
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    return GgufTensor(name, path, dtype, shape, pieces[0].offset, nbytes, pieces=pieces)
