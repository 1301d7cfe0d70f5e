"""Model families. Every module here that defines `FAMILY` is one; adding a family is adding a file."""

from __future__ import annotations

from typing import Any

from llmc.convert.families.family import Family
from llmc.convert.unknown_architecture import describe
from llmc.errors import InputError
from llmc.registry import Registry

families: Registry[Family] = Registry("model family", __name__, "FAMILY")


def family_of(config: dict[str, Any]) -> Family:
    """The family that config.json names; InputError with what is missing and the nearest one otherwise, or where
    `architectures` and `model_type`, of which programs read one or the other, name two.
    """
    named, kind = config.get("architectures"), config.get("model_type")
    named = named if isinstance(named, list) else []
    # A name of its own comes first: without architectures, `qwen2` is no MiMo.
    for family in sorted(families.all.values(), key=lambda family: family.name != kind):
        kinds = (family.name, *family.other_names)
        if any(name in family.architectures for name in named) or (not named and kind in kinds):
            if kind is not None and kind not in kinds:
                raise InputError(
                    f"`model_type` is {kind!r}, but `architectures` names {named[0]!r}, which is {family.name!r}; "
                    "if it is that, correct `model_type`"
                )
            return family
    raise InputError(describe(config, families.all.values()))
