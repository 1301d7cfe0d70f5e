"""Quantization schemes. Every module here that defines `SCHEMES` adds some; adding a scheme is adding a file."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil

from llmc.errors import InputError
from llmc.quant.schemes.scheme import Scheme


@functools.cache
def schemes() -> dict[str, Scheme]:
    """All schemes by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {scheme.name: scheme for module in modules for scheme in getattr(module, "SCHEMES", ())}


def scheme(name: str) -> Scheme:
    """The scheme of that name; InputError with the valid names, the nearest first."""
    known = schemes()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        plain = [each for each in known if each.startswith(("int4", "fp8")) and each.count("-") == 1]
        raise InputError(
            f"unknown scheme {name!r}; did you mean {nearest!r}? ({', '.join(plain)}; likewise int2, int3, int8; "
            "behind an integer's name -asym for zero points, -actorder for groups in act-order)"
        )
    return known[name]
