"""What a GGUF file's headers promise, held against the file before they are read.

The package that reads them makes Python objects of every element of every array, and multiplies dimensions in 64 bits.
That is right for a file that says what it holds; one of a stranger may say it holds more than fits into any memory.

The layout is at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import os
import struct
from io import BufferedReader

_VERSIONS = (2, 3)
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of scalars, by number of the type
_STRING, _ARRAY = 8, 9
_MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS = 1 << 16, 1 << 17, 4
_MOST_ITEMS = 4_000_000  # in all arrays: tokens, scores, types and merges of a vocabulary of a million
_MOST_TEXT = 64 << 20  # bytes of a string
_WEIGHTS_PER_BYTE = 8  # of the type with the fewest bits


def require_bounds(file: BufferedReader) -> None:
    """Walk over the headers; ValueError for what is damaged, big-endian, or larger than such a file may be."""
    walk = _Walk(file)
    version, tensors, keys = walk.number("I"), walk.number("Q"), walk.number("Q")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, or big-endian; versions 2 and 3 are read")
    if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
        raise ValueError(f"{keys:,} keys and {tensors:,} tensors")
    for _ in range(keys):
        walk.text()
        walk.value(walk.number("I"))
    for _ in range(tensors):
        walk.text()
        dimensions = walk.number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions:,} dimensions")
        weights = math.prod(walk.number("Q") for _ in range(dimensions))
        walk.number("I")
        if not 0 < weights <= _WEIGHTS_PER_BYTE * walk.size or walk.number("Q") > walk.size:
            raise ValueError(f"a tensor of {weights:,} numbers")


class _Walk:
    """A place in the file, behind the magic number."""

    def __init__(self, file: BufferedReader) -> None:
        self.file, self.size, self.items = file, os.fstat(file.fileno()).st_size, 0
        file.seek(4)

    def number(self, kind: str) -> int:
        data = self.file.read(struct.calcsize(f"<{kind}"))
        try:
            return int(struct.unpack(f"<{kind}", data)[0])
        except struct.error:
            raise ValueError("it ends inside of its headers") from None

    def text(self) -> None:
        self._pass(self.number("Q"), _MOST_TEXT)

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            self.items += count
            if self.items > _MOST_ITEMS:
                raise ValueError(f"arrays of more than {_MOST_ITEMS:,} items")
            if inner == _ARRAY:
                raise ValueError("an array of arrays")
            if inner == _STRING:
                for _ in range(count):
                    self.text()
            else:
                self._pass(count * self._width(inner), self.size)
        else:
            self._pass(self._width(kind), self.size)

    def _width(self, kind: int) -> int:
        if kind not in _BYTES:
            raise ValueError(f"a value of the unknown type {kind}")
        return _BYTES[kind]

    def _pass(self, nbytes: int, limit: int) -> None:
        end = self.file.tell() + nbytes
        if nbytes > limit or end > self.size:
            raise ValueError("it ends inside of its headers, or says that it has a longer text than any")
        self.file.seek(end)
