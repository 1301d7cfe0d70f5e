"""Many modules in few regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable


def patterns(modules: Iterable[str]) -> list[str]:
    """Regular expressions for module names, one per kind of module, with its layers listed and experts left open."""
    layers: dict[str, set[int]] = {}
    for module in modules:
        match = re.fullmatch(r"(?:.*\.)?layers\.(\d+)\.(.+)", module)
        assert match, module
        kind = re.sub(r"\.experts\.\d+\.", ".experts.*.", match[2])
        layers.setdefault(kind, set()).add(int(match[1]))
    result = []
    for kind, numbers in layers.items():
        inside = re.escape(kind).replace(r"\.experts\.\*\.", r"\.experts\.\d+\.")
        result.append(rf".*layers\.({'|'.join(map(str, sorted(numbers)))})\.{inside}$")
    return result
