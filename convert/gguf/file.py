"""A GGUF file as a checkpoint: its headers, by which every tensor of ours is found in it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmc.convert.families import family_of
from llmc.convert.folder import open_file
from llmc.convert.gguf.architectures import architecture
from llmc.convert.gguf.arrangement import arranged
from llmc.convert.gguf.bounds import require_bounds
from llmc.convert.gguf.stored_tensor import FLOATS, GgufTensor, Piece, of_pieces
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.tensor_names import ModuleName, module_of
from llmc.errors import InputError, MachineError
from llmc.extras import install

TYPES = (*FLOATS, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
TYPES += ("MXFP4",)
_IGNORED = ("rope_freqs.",)  # follows from config.json


@dataclass(frozen=True)
class Lies:
    """Where a tensor lies: type, shape of its numbers (rows first), offset and bytes."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """What a file says of its model, and where its tensors lie."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Lies]

    def values(self, name: str) -> list[float]:
        """Return a small tensor's numbers."""
        lies = self.tensors[name]
        piece = Piece(lies.kind, lies.shape, lies.offset, lies.nbytes)
        found: list[float] = of_pieces(name, self.path, lies.shape, (piece,)).read().float().flatten().tolist()
        return found


def open_gguf(path: Path) -> GgufFile:
    """Read the headers of a GGUF file, once as long as it does not change.

    Raises:
        InputError: for another file, a damaged one, or types that are not read
        MachineError: where the package gguf is missing
    """
    with open_file(path) as file:
        beginning = file.read(4)
    if beginning != b"GGUF":
        raise InputError(f"{path}: does not begin as a GGUF file does; download it again")
    told = path.stat()
    return _read(path.resolve(), told.st_size, told.st_mtime_ns)


@lru_cache(4)
def _read(path: Path, size: int, changed: int) -> GgufFile:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MachineError(
            f"{path}: reading GGUF takes the package gguf, which is missing; {install('gguf')}"
        ) from error
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        with open_file(path) as file:
            require_bounds(file)
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            each.name: Lies(
                each.tensor_type.name,
                tuple(int(n) for n in reversed(each.shape)),
                int(each.data_offset),
                int(each.n_bytes),
            )
            for each in reader.tensors
        }
    except (ValueError, LookupError, OverflowError, TypeError, OSError) as error:
        raise InputError(f"{path}: damaged or cut short ({str(error)[:80]}); download it again") from error
    for name, lies in tensors.items():
        if lies.kind not in TYPES:
            raise InputError(f"{path}: {name} is {lies.kind}; of llama.cpp's types only {', '.join(TYPES)} are read")
        if lies.offset + lies.nbytes > size:
            raise InputError(f"{path}: truncated inside {name}; download the file again")
    if metadata.get("split.count", 0) not in (0, 1):
        raise InputError(f"{path}: is one of several parts; join them with llama.cpp's `llama-gguf-split --merge`")
    return GgufFile(path, metadata, tensors)


def read_tensors(path: Path, config: dict[str, Any]) -> dict[str, GgufTensor]:
    """Find every tensor of a checkpoint in a GGUF file, by the names that its family has for them.

    Args:
        path: Of the file.
        config: The config.json that was made of its metadata.

    Raises:
        InputError: for a file that does not hold what its metadata promise
    """
    file, family = open_gguf(path), family_of(config)
    spec = family.spec(config)
    found = architecture(spec.family)
    assert found is not None  # the config was made of one
    shapes, names = weight_shapes(spec), family.stored_names.spelled_as((), spec)
    pieces: dict[str, list[Piece]] = {}
    known = set[str]()
    for each in arranged(spec, found, mtp=True):
        known.add(each.name)
        lies = file.tensors.get(each.name)
        if lies is None:
            continue  # what is missing is told of the whole checkpoint
        if lies.shape != each.shape:
            raise InputError(
                f"{path}: {each.name} has shape {list(lies.shape)}, and the metadata ask for {list(each.shape)}; one "
                "of the two belongs to another model"
            )
        for index, source in enumerate(each.sources):
            shape, nbytes = lies.shape, lies.nbytes // len(each.sources)
            if ModuleName.parse(module_of(source)).expert is not None:
                shape = shape[1:]
            piece = Piece(lies.kind, shape, lies.offset + index * nbytes, nbytes, each.rows, each.transposed)
            pieces.setdefault(source, []).append(piece)
    for name in file.tensors:
        if name not in known and not name.startswith(_IGNORED):
            raise InputError(f"{path}: {name} has no place in a {found.name} model with these metadata; it is not read")
    for source, parts in pieces.items():
        if sum(math.prod(piece.shape) for piece in parts) != math.prod(shapes[source]):
            raise InputError(f"{path}: holds a part of {names.stored(source)} only; download the file again")
    return {
        names.stored(source): of_pieces(names.stored(source), path, shapes[source], tuple(parts))
        for source, parts in pieces.items()
    }
