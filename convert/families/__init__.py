"""Model families. Every module here that defines `FAMILY` is one; adding a family is adding a file."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

from llmc.convert.families.family import Family
from llmc.errors import InputError


@functools.cache
def families() -> dict[str, Family]:
    """Family by architecture name, as in config.json's `architectures`."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {architecture: family for family in found for architecture in family.architectures}


def family_of(config: dict[str, Any]) -> Family:
    """The family that config.json names; InputError with the list of known ones otherwise."""
    named = config.get("architectures")
    named = named if isinstance(named, list) else []
    for family in families().values():
        if any(name in family.architectures for name in named) or (
            not named and config.get("model_type") == family.name
        ):
            return family
    raise InputError(
        f"unknown architecture {', '.join(map(str, named)) or config.get('model_type')!r} "
        f"(fields `architectures` and `model_type`); known: {', '.join(sorted(families()))}"
    )
