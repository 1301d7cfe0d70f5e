"""What an engine is made of, read from the file itself: the compiled program lies in it as text.

Deserializing needs the GPU the engine is for; this needs nothing. There is one program per optimization profile, in
several parts where plugins that change their inputs stand between them.
"""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from llmc.contracts.engine import EngineProgram

# The head of a profile's program. Those of single kernels have the same head, but are for any accelerator.
_HEADER = re.compile(rb"header \{\s+version = \d+\s+n_accelerators")
_TARGETS = re.compile(rb"accelerators=\{([^}]*)\}")
_CONSTANT = re.compile(rb"const_payload_size=(\d+) [^\n]* type=(\w+)")
_KERNEL = re.compile(rb"^  (function|runtime_fusion|fully_connected|custom_layer)=\{ (name=[^\n]*)", re.MULTILINE)
_TENSOR = re.compile(rb'tensor=\{[^\n]* dims=\{([^}]*)\}[^\n]* name=(?:"([^"]*)"|(\S+))[^\n]* type=(\w+)')
_PAYLOAD = re.compile(rb"const_payload_size=(\d+)")
_INPUTS, _OUTPUTS = (re.compile(rb" %s(?:_args)?=\{([^}]*)\}" % name) for name in (b"input", b"output"))
_QUOTED = re.compile(rb'"([^"]*)"')
_LAYERS = re.compile(rb"\[ONNX Layer: ([^\]]*)\]")
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r"
_PAGE = 4096
CODES = {"int4", "int8", "fp8_e4m3"}
PACKED = "int32"  # codes as plugins take them
# What reads codes, as the fields of `EngineProgram` that count them are called.
READERS = MULTIPLIED, PLUGIN, GATHERED, DECODED = "multiplied_bytes", "plugin_bytes", "gathered_bytes", "decoded_bytes"
# A kernel that decodes writes at least this part of what it reads: the key half of a kv_b_proj, for instance.
_PART = 1 / 4


@dataclass(frozen=True)
class ProgramText:
    """What of an engine is text.

    Attributes:
        text_bytes: of the file that is program and kernel source, not weights; about the same for every model with
            as many layers, however wide
        programs: one per profile. Programs share what weights they have in common, so the file holds less than the sum
            of their constant_bytes.
    """

    text_bytes: int
    programs: list[EngineProgram]


@dataclass
class _Part:
    """What is added up over the parts of a program."""

    sm: set[int]
    kernels: Counter[str] = field(default_factory=Counter)
    constants: Counter[str] = field(default_factory=Counter)
    read: dict[str, Counter[str]] = field(default_factory=lambda: {each: Counter() for each in READERS})
    decoded: set[str] = field(default_factory=set)


def inspect(engine: Path, profiles: int, weights: Mapping[str, str] = MappingProxyType({})) -> ProgramText:
    """Read the text of an engine that was compiled for so many optimization profiles.

    Args:
        weights: node of the graph that decodes one → weight
    """
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Pages of text lead, pages of weights follow; of random bytes, 38 % would be printable.
        pages = (data[start : start + _PAGE] for start in range(0, len(data), _PAGE))
        text = [i for i, page in enumerate(pages) if len(page.translate(None, _PRINTABLE)) < len(page) / 10]
        end = (text[-1] + 2) * _PAGE if text else 0
        heads = []
        for header in _HEADER.finditer(data, 0, end):
            targets = _TARGETS.search(data, header.end(), end)
            if targets and targets[1] != b"*":
                heads.append((header.start(), targets[1].decode().split()))
        parts = [
            _part({int(name.removeprefix("sm")) for name in sm}, data[start:stop], weights)
            for (start, sm), stop in zip(heads, [*(start for start, _ in heads[1:]), end], strict=True)
        ]
    count = max(1, len(parts) // profiles)
    programs = [_program(parts[start : start + count]) for start in range(0, len(parts), count)]
    return ProgramText(len(text) * _PAGE, programs)


def _part(sm: set[int], text: bytes, weights: Mapping[str, str]) -> _Part:
    part = _Part(sm)
    for constant in _CONSTANT.finditer(text):
        part.constants[constant[2].decode()] += int(constant[1])
    part.kernels.update(kernel[1].decode() for kernel in _KERNEL.finditer(text))
    inner = _HEADER.search(text, 1)  # of the first kernel; those name their tensors like the program does
    text = text[: inner.start()] if inner else text
    tensors = {}
    for tensor in _TENSOR.finditer(text):
        payload = _PAYLOAD.search(tensor[0])
        tensors[tensor[2] or tensor[3]] = _Tensor(
            tensor[4].decode(), tensor[1].split(), int(payload[1]) if payload else 0
        )
    for kernel in _KERNEL.finditer(text):
        kind = kernel[1].decode()
        codes = [each for each in _named(_INPUTS, kernel[2], tensors) if each.payload and each.type in CODES | {PACKED}]
        for each in codes:
            if kind == "custom_layer":
                reader = PLUGIN
            elif each.type == PACKED:
                continue  # an index or a shape
            else:
                reader = MULTIPLIED if kind != "function" else _reader(kernel[2], each, tensors)
            part.read[reader][each.type] += each.payload
            if reader == DECODED:
                layers = [layer.decode() for layer in _LAYERS.findall(kernel[2])]
                part.decoded |= {weights[layer] for layer in layers if layer in weights} or set(layers[:1])
    return part


@dataclass(frozen=True)
class _Tensor:
    type: str
    dims: list[bytes]  # numbers, or expressions in quotation marks
    payload: int  # bytes, of a constant

    @property
    def size(self) -> int:
        """Without the axes that depend on the step."""
        return math.prod(int(n) for n in self.dims if n.isdigit())

    @property
    def fixed(self) -> bool:
        return all(n.isdigit() for n in self.dims)


def _named(place: re.Pattern[bytes], kernel: bytes, tensors: Mapping[bytes, _Tensor]) -> Iterator[_Tensor]:
    found = place.search(kernel)
    return (tensors[name] for name in _QUOTED.findall(found[1] if found else b"") if name in tensors)


def _reader(kernel: bytes, codes: _Tensor, tensors: Mapping[bytes, _Tensor]) -> str:
    """What a kernel that the compiler generated does with codes: it writes them all as floats, or those of single
    experts, or only what it sums up of them.
    """
    large = [each for each in _named(_OUTPUTS, kernel, tensors) if each.size >= codes.size * _PART]
    if any(each.fixed for each in large):
        return DECODED
    if b"Gath" in kernel.split(None, 1)[0]:
        return GATHERED
    return DECODED if large else MULTIPLIED


def _program(parts: list[_Part]) -> EngineProgram:
    """Parts follow each other, those of a profile together."""

    def sums(counts: list[Counter[str]]) -> dict[str, int]:
        return dict(sorted(sum(counts, Counter()).items()))

    return EngineProgram(
        sm=sorted(set.intersection(*(part.sm for part in parts))),
        parts=len(parts),
        constant_bytes=sums([part.constants for part in parts]),
        kernels=sums([part.kernels for part in parts]),
        **{reader: sums([part.read[reader] for part in parts]) for reader in READERS},
        decoded=sorted(set.union(*(part.decoded for part in parts))),
    )
