"""What an engine is made of, read from the file itself: the compiled program lies in it as text.

Deserialising needs the GPU the engine is for; this needs nothing. There is one program per optimisation profile.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from pathlib import Path
from typing import Any

# The head of a profile's program. Those of single kernels have the same head, but are for any accelerator.
_HEADER = re.compile(rb"header \{\s+version = \d+\s+n_accelerators")
_TARGETS = re.compile(rb"accelerators=\{([^}]*)\}")
_CONSTANT = re.compile(rb"const_payload_size=(\d+) [^\n]* type=(\w+)")
_KERNEL = re.compile(rb"^  (function|runtime_fusion|fully_connected|custom_layer)=\{ name=", re.MULTILINE)
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r"
_PAGE = 4096


def inspect(engine: Path) -> dict[str, Any]:
    """{"text_bytes", "programs": [{"sm", "constant_bytes": {type: bytes}, "kernels": {kind: count}}]}

    text_bytes: of the file that is program and kernel source, not weights; about the same for every model with
    as many layers, however wide
    constant_bytes: of all weights the program uses. Programs share what they have in common, so the file holds
    less than their sum.
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
        programs = []
        for (start, sm), stop in zip(heads, [*(start for start, _ in heads[1:]), end], strict=True):
            constant_bytes: Counter[str] = Counter()
            for constant in _CONSTANT.finditer(data, start, stop):
                constant_bytes[constant[2].decode()] += int(constant[1])
            kernels = Counter(kernel[1].decode() for kernel in _KERNEL.finditer(data, start, stop))
            programs.append(
                {
                    "sm": sorted(int(name.removeprefix("sm")) for name in sm),
                    "constant_bytes": dict(sorted(constant_bytes.items())),
                    "kernels": dict(sorted(kernels.items())),
                }
            )
        return {"text_bytes": len(text) * _PAGE, "programs": programs}
