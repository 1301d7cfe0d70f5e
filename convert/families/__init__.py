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
    """The family that config.json names; InputError with the list of known ones otherwise, or where `architectures`
    and `model_type`, of which programs read one or the other, name two."""
    named, kind = config.get("architectures"), config.get("model_type")
    named = named if isinstance(named, list) else []
    for family in dict.fromkeys(families().values()):
        kinds = (family.name, *family.other_names)
        if any(name in family.architectures for name in named) or (not named and kind in kinds):
            if kind is not None and kind not in kinds:
                raise InputError(
                    f"`model_type` is {kind!r}, but `architectures` names {named[0]!r}, which is {family.name!r}; "
                    "if it is that, correct `model_type`"
                )
            return family
    raise InputError(
        f"unknown architecture {', '.join(map(str, named)) or kind!r} "
        f"(fields `architectures` and `model_type`); known: {', '.join(sorted(families()))}"
    )
