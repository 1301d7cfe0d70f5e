"""What an engine is made of, read from the file itself: the compiled program lies in it as text.

Deserializing needs the GPU the engine is for; this needs nothing. There is one program per optimization profile, in
several parts where plugins that change their inputs stand between them.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from llmc.contracts.engine import EngineProgram

# The head of a profile's program. Those of single kernels have the same head, but are for any accelerator.
_HEADER = re.compile(rb"header \{\s+version = \d+\s+n_accelerators")
_TARGETS = re.compile(rb"accelerators=\{([^}]*)\}")
_CONSTANT = re.compile(rb"const_payload_size=(\d+) [^\n]* type=(\w+)")
_KERNEL = re.compile(rb"^  (function|runtime_fusion|fully_connected|custom_layer)=\{ name=", re.MULTILINE)
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r"
_PAGE = 4096


@dataclass(frozen=True)
class ProgramText:
    """What of an engine is text.

    Attributes:
        text_bytes: of the file that is program and kernel source, not weights; about the same for every model with

    as many layers, however wide

    Attributes:
        programs: one per profile. Programs share what weights they have in common, so the file holds less than the sum
            of

    their constant_bytes.
    """

    text_bytes: int
    programs: list[EngineProgram]


def inspect(engine: Path, profiles: int) -> ProgramText:
    """Read the text of an engine that was compiled for so many optimization profiles."""
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
        parts = []
        for (start, sm), stop in zip(heads, [*(start for start, _ in heads[1:]), end], strict=True):
            constant_bytes: Counter[str] = Counter()
            for constant in _CONSTANT.finditer(data, start, stop):
                constant_bytes[constant[2].decode()] += int(constant[1])
            kernels = Counter(kernel[1].decode() for kernel in _KERNEL.finditer(data, start, stop))
            parts.append((tuple(sorted(int(name.removeprefix("sm")) for name in sm)), constant_bytes, kernels))
    count = max(1, len(parts) // profiles)
    programs = [_program(parts[start : start + count]) for start in range(0, len(parts), count)]
    return ProgramText(len(text) * _PAGE, programs)


def _program(parts: list[tuple[tuple[int, ...], Counter[str], Counter[str]]]) -> EngineProgram:
    """Parts follow each other, those of a profile together."""
    sms, constant_bytes, kernels = zip(*parts, strict=True)
    return EngineProgram(
        sm=sorted(set.intersection(*map(set, sms))),
        parts=len(parts),
        constant_bytes=dict(sorted(sum(constant_bytes, Counter()).items())),
        kernels=dict(sorted(sum(kernels, Counter()).items())),
    )
