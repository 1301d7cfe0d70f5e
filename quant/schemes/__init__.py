"""Quantization schemes. Every module here that defines `SCHEMES` adds some; adding a scheme is adding a file."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil

from llmc.errors import InputError
from llmc.patterns import shown
from llmc.quant.schemes.names import canonical, explanation
from llmc.quant.schemes.scheme import Scheme


@functools.cache
def schemes() -> dict[str, Scheme]:
    """All schemes by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {scheme.name: scheme for module in modules for scheme in getattr(module, "SCHEMES", ())}


def scheme(name: str) -> Scheme:
    """Return the scheme of that name, ours or the one that other programs have for it.

    Raises:
        InputError: with the nearest name, or with what is to be written in place of what is no scheme
    """
    known = schemes()
    if (found := known.get(canonical(name))) is not None:
        return found
    if why := explanation(name):
        raise InputError(f"scheme {shown(name)} {why}")
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]!r}? " if near else ""
    plain = [each for each in known if each.startswith(("int4", "fp8")) and each.count("-") == 1]
    raise InputError(
        f"unknown scheme {shown(name)}; {hint}(known: {', '.join(plain)}; likewise int2, int3, int8; behind an "
        "integer's name -asym for zero points, -actorder for groups in act-order)"
    )
