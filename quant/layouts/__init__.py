"""How a quantized checkpoint lies on disk. Every module here that defines `LAYOUT` adds one."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from llmc.errors import InputError
from llmc.quant.layouts.layout import DEFAULT_LAYOUT, Layout

__all__ = ["DEFAULT_LAYOUT", "Layout", "layout", "layouts"]


@functools.cache
def layouts() -> dict[str, Layout]:
    """All layouts by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {module.LAYOUT.name: module.LAYOUT for module in modules if hasattr(module, "LAYOUT")}


def layout(name: str) -> Layout:
    """The layout of that name; InputError with the known ones."""
    known = layouts()
    if name not in known:
        raise InputError(f"unknown layout {name!r}; use one of {', '.join(known)}")
    return known[name]
