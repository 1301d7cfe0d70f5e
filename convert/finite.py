"""Whether weights are finite: looked at while their file is read for its hash, a tenth of what SHA-256 takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmc.errors import InputError

if TYPE_CHECKING:
    from llmc.convert.safetensors_file import StoredTensor

_PIECE = 1 << 20  # bytes that stay in a core's cache for both readers; a multiple of every item size
_NAMED = 3  # tensors that an error names
# By dtype: integers of its size, signed and unsigned, and the bits of infinity, or of NaN where there is no infinity.
_FIRST_BAD: dict[str, tuple[type[np.generic], type[np.generic], int]] = {
    "F8_E4M3": (np.int8, np.uint8, 0x7F),
    "F8_E5M2": (np.int8, np.uint8, 0x7C),
    "F16": (np.int16, np.uint16, 0x7C00),
    "BF16": (np.int16, np.uint16, 0x7F80),
    "F32": (np.int32, np.uint32, 0x7F800000),
    "F64": (np.int64, np.uint64, 0x7FF0000000000000),
}


class FiniteCheck:
    """Looks at the `tensors` of every file that is read through `pieces`."""

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        self._tensors: dict[Path, list[StoredTensor]] = {}
        self._broken: list[StoredTensor] = []
        for tensor in tensors:
            if tensor.plain and tensor.dtype in _FIRST_BAD:
                self._tensors.setdefault(tensor.file, []).append(tensor)

    def pieces(self, path: Path) -> Iterator[memoryview]:
        """All bytes of a file in order, each piece until the next one is asked for."""
        buffer, position = np.empty(_PIECE, np.uint8), 0
        with path.open("rb") as file:

            def read(end: int | None) -> Iterator[np.ndarray]:
                """Up to byte `end`, or to the end of the file, which may come first."""
                nonlocal position
                while end is None or position < end:
                    wanted = _PIECE if end is None else min(_PIECE, end - position)
                    count = file.readinto(buffer[:wanted].data)
                    if not count:
                        return
                    position += count
                    yield buffer[:count]

            for tensor in sorted(self._tensors.get(path, ()), key=lambda tensor: tensor.offset):
                for piece in read(tensor.offset):
                    yield piece.data
                finite = True
                for piece in read(tensor.offset + tensor.nbytes):
                    finite = finite and _finite(piece, tensor.dtype)
                    yield piece.data
                if not finite:
                    self._broken.append(tensor)
            for piece in read(None):
                yield piece.data

    def refuse(self) -> None:
        """InputError when any tensor seen so far holds NaN or infinity."""
        if not self._broken:
            return
        first, names = self._broken[0], [tensor.name for tensor in self._broken]
        if len(names) == 1:
            what = f"tensor {names[0]} holds NaN or infinity"
        else:
            files = len({tensor.file for tensor in self._broken})
            counted = f"{len(names)} in all" + (f", in {files} files" if files > 1 else "")
            what = f"tensors {', '.join(names[:_NAMED])} ({counted}) hold NaN or infinity"
        raise InputError(
            f"{first.file}: {what}; download the file again, or, if it was published like this, use another model"
        )


def _finite(piece: np.ndarray, dtype: str) -> bool:
    """Of the numbers of a type those that are not finite are the largest by their bits, of either sign."""
    signed, unsigned, bad = _FIRST_BAD[dtype]
    size = np.dtype(signed).itemsize
    whole = piece[: len(piece) // size * size]  # of a file that was cut short meanwhile
    sign = 1 << (8 * size - 1)
    return not len(whole) or bool(whole.view(signed).max() < bad and whole.view(unsigned).max() < bad + sign)
