"""Mixes of texts by name, `mix:chat`: files of recipes/mixes/, each a list of texts with weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llmc import plain_yaml
from llmc.errors import InputError
from llmc.registry import unknown

MIX = "mix:"


def known_mixes() -> dict[str, Path]:
    """Name → file of the mixes that ship with llmc."""
    from llmc.recipes import mixes

    return {path.stem: path for path in sorted(Path(mixes.__file__).parent.glob("*.yaml"))}


@cache
def mixed(name: str) -> list[tuple[str, float]]:
    """Text and share of the tokens of each source of a mix; InputError, with the nearest, for one that is not known."""
    files = known_mixes()
    if name not in files:
        raise InputError(unknown("mix", name, files))
    entries, _ = plain_yaml.read(files[name].read_text("utf-8"))
    total = sum(entry["weight"] for entry in entries)
    return [(entry["text"], entry["weight"] / total) for entry in entries]
