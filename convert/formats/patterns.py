"""Many modules in few regular expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable


def patterns(modules: Iterable[str]) -> list[str]:
    """Regular expressions for module names, one per kind of module, with its layers listed and experts left open.
    Embedding and head, which are in no layer, are known by their last name.

    What lies in front of `layers` is left open: programs that load a checkpoint move it about. But layers of a language
    model inside a larger one are not those of its vision tower, nor are `mtp_layers`, counted anew, its `layers`.
    """
    layers: dict[tuple[str, str, str], set[int]] = {}
    result = []
    for module in modules:
        match = re.fullmatch(r"(.*\.)?(\w*layers)\.(\d+)\.(.+)", module)
        if match is None:
            result.append(rf"(.*\.)?{re.escape(module.rpartition('.')[2])}$")
            continue
        kind = re.sub(r"\.experts\.\d+\.", ".experts.*.", match[4])
        where = r".*language_model\..*" if "language_model." in (match[1] or "") else ".*"
        layers.setdefault((where, match[2], kind), set()).add(int(match[3]))
    for (where, called, kind), numbers in layers.items():
        inside = re.escape(kind).replace(r"\.experts\.\*\.", r"\.experts\.\d+\.")
        result.append(rf"{where}\b{called}\.({'|'.join(map(str, sorted(numbers)))})\.{inside}$")
    return result
