"""Plug-ins, and what is said of a name that none of them has. A leaf module: every room may import it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from llmc.errors import InputError
from llmc.patterns import shown

_WHOLE_WORD = 3  # characters at which the beginning of a name tells more than letters that it shares


class Named(Protocol):
    @property
    def name(self) -> str: ...


_Plugin = TypeVar("_Plugin", bound=Named)


class Registry(Generic[_Plugin]):
    """Plug-ins of one kind: every module of a package adds those that its constant holds, so a new one is a new file.

    Args:
        kind: What users call one: scheme, target, ….
        package: Whose modules are looked through, when a plug-in is first asked for.
        constant: The name of a plug-in, or a tuple of them, in these modules.
        known: What to say of the names there are, where they are too many to list.
    """

    def __init__(self, kind: str, package: str, constant: str, known: str = "") -> None:
        self.kind, self.package, self.constant, self.known = kind, package, constant, known

    @cached_property
    def all(self) -> dict[str, _Plugin]:
        """All plug-ins by name."""
        folder = importlib.import_module(self.package).__path__
        modules = [importlib.import_module(f"{self.package}.{info.name}") for info in pkgutil.iter_modules(folder)]
        values = [getattr(module, self.constant, ()) for module in modules]
        found = [plugin for value in values for plugin in (value if isinstance(value, tuple) else (value,))]
        return {plugin.name: plugin for plugin in found}

    def get(self, name: str) -> _Plugin:
        """Return the plug-in of that name; InputError, with the nearest and the known ones, if there is none."""
        if name not in self.all:
            raise InputError(unknown(self.kind, name, self.all, self.known))
        return self.all[name]


def unknown(kind: str, name: str, names: Iterable[str], known: str = "") -> str:
    """Return `unknown key 'shceme'; did you mean 'scheme'? (known: match, scheme)`, or without a guess if none is near.

    Args:
        kind: What it should be the name of.
        name: What a user wrote.
        names: Those that there are; upper case and underscores make no difference to what is near.
        known: What to say instead of them.
    """
    plain = {_plain(each): each for each in names}
    known, word = known or ", ".join(plain.values()), _plain(name)
    longer = [each for each in plain if len(word) >= _WHOLE_WORD and each.startswith(word)]
    hint = f"known: {known}"
    if near := longer or difflib.get_close_matches(word, plain, n=1):
        hint = f"did you mean {plain[near[0]]!r}? ({hint})"
    return f"unknown {kind} {shown(name)}; {hint}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
