"""safetensors files: a reader that trusts nothing in the header, and a writer that streams.

Layout (https://github.com/huggingface/safetensors#format): u64 header length, JSON header, tensor bytes.
Tensors are read, not mapped: a file cut short after it was opened is an error instead of a bus error, and the
memory of a tensor is gone with the tensor.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from llmc.convert.folder import open_file
from llmc.errors import InputError, MachineError
from llmc.files import open_regular, parse_json

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_MAX_DIMENSIONS, _MAX_NAME = 64, 1000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor, or a part of one, as it lies on disk.

    Attributes:
        dtype: the safetensors name
        offset: of its first element, absolute in `file`
        nbytes: of its own elements
        strides: elements from one index of an axis to the next, where others' lie in between, or axes are swapped;
            None: they lie one behind the other
        whole: what it is a part of; None: it is whole
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None
    whole: StoredTensor | None = field(default=None, compare=False, repr=False)

    @property
    def plain(self) -> bool:
        """Whether its numbers lie in the file as they are; other formats may have to decode them."""
        return True

    def rows(self, start: int, stop: int, step: int = 1) -> StoredTensor:
        """A part of it along the first axis, where it lies: reading it reads from the first to the last of them."""
        first, *others = self.strides or _row_major(self.shape)
        shape = (len(range(start, stop, step)), *self.shape[1:])
        name = f"{start}:{stop}" if step == 1 else f"{start}:{stop}:{step}"
        return self._part(name, shape, start * first, (step * first, *others))

    def item(self, index: int) -> StoredTensor:
        """One index of the first axis, without that axis."""
        first, *others = self.strides or _row_major(self.shape)
        return self._part(f"{index}", self.shape[1:], index * first, tuple(others))

    def transposed(self) -> StoredTensor:
        """A matrix with its rows for columns."""
        (high, wide), (down, across) = self.shape, self.strides or _row_major(self.shape)
        return self._part("transposed", (wide, high), 0, (across, down))

    def _part(self, name: str, shape: tuple[int, ...], start: int, strides: tuple[int, ...]) -> StoredTensor:
        size = DTYPES[self.dtype].itemsize
        plain = all(n == 1 or a == b for n, a, b in zip(shape, strides, _row_major(shape), strict=True))
        return StoredTensor(
            f"{self.name}[{name}]",
            self.file,
            self.dtype,
            shape,
            self.offset + start * size,
            math.prod(shape) * size,
            None if plain else strides,
            self.whole or self,
        )

    def read(self) -> torch.Tensor:
        """A fresh tensor of the stored dtype and shape."""
        if self.strides is None:
            return self._between(self.nbytes).view(DTYPES[self.dtype]).reshape(self.shape)
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        dtype = DTYPES[self.dtype]
        found = self._between((last + 1) * dtype.itemsize if self.nbytes else 0).view(dtype)
        return found.as_strided(self.shape, self.strides).clone(memory_format=torch.contiguous_format)

    def _between(self, size: int) -> torch.Tensor:
        """The bytes from its first element on."""
        data = torch.empty(size, dtype=torch.uint8)
        with open_regular(self.file) as file:
            file.seek(self.offset)
            view, done = data.numpy().data, 0
            while done < size:  # one read returns at most 2 GiB
                count = file.readinto(view[done:])
                if not count:
                    raise InputError(f"{self.file}: truncated inside {self.name}; download the file again")
                done += count
        return data


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of elements that lie one behind the other."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file in the order of their bytes; InputError when header and file disagree."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise InputError(f"{path}: truncated or not a safetensors file; download it again")
            header = parse_json(file.read(length))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); download it again") from error
    except ValueError as error:
        raise InputError(f"{path}: broken safetensors header ({error}); download it again") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: broken safetensors header (not an object); download it again")
    header.pop("__metadata__", None)
    tensors = [_stored_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise InputError(f"{path}: the bytes of {tensor.name} overlap another tensor's or leave a hole")
        end += tensor.nbytes
    if end > size:
        raise InputError(f"{path}: truncated, {size:,} bytes of {end:,}; download the file again")
    if end < size:
        raise InputError(f"{path}: {size - end:,} bytes that belong to no tensor; download the file again")
    return {tensor.name: tensor for tensor in tensors}


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = len(shape) <= _MAX_DIMENSIONS and len(name) <= _MAX_NAME
        whole = whole and all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{path}: broken safetensors header at {name[:_MAX_NAME]}; download the file again")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{path}: {name} has the unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise InputError(f"{path}: {name} is {dtype} {list(shape)} but has {end - begin:,} bytes")
    return StoredTensor(name, path, dtype, shape, data_start + begin, end - begin)


class SafetensorsWriter:
    """Writes tensors in the order they are given; the file appears under its name only when complete.

    Tensor bytes stream into a side file, because the header that precedes them is known last.

        with SafetensorsWriter(path) as writer:
            writer.add("a.weight", tensor)
    """

    def __init__(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        self.path = Path(path)
        self._header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
        self._offset = 0
        self._data_path = self.path.with_name(self.path.name + ".data")
        self._tmp_path = self.path.with_name(self.path.name + ".tmp")
        self._data = self._data_path.open("wb")

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Appends one tensor; MachineError when the disk is full."""
        if name in self._header:
            raise ValueError(f"{name} was written before")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        end = self._offset + data.numel()
        self._header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._offset, end],
        }
        try:
            self._data.write(data.numpy().data)
        except OSError as error:
            raise self._machine_error(error) from error
        self._offset = end

    def close(self) -> None:
        """Puts header and bytes together and gives the file its name."""
        header = json.dumps(self._header, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # keeps the tensor bytes aligned
        try:
            self._data.close()
            with self._tmp_path.open("wb") as target, self._data_path.open("rb") as data:
                target.write(len(header).to_bytes(8, "little") + header)
                shutil.copyfileobj(data, target, 1 << 24)
                target.flush()
                os.fsync(target.fileno())
            self._tmp_path.replace(self.path)
        except OSError as error:
            raise self._machine_error(error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Removes what an unfinished writer left."""
        self._data.close()
        self._data_path.unlink(missing_ok=True)
        self._tmp_path.unlink(missing_ok=True)

    def _machine_error(self, error: OSError) -> Exception:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        return MachineError(f"{self.path}: no space left on the disk; free some or write elsewhere")

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()
