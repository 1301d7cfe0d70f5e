"""Names of a package that are imported where they are first used: importing the package itself costs nothing."""

from __future__ import annotations

TYPE_CHECKING = False  # nor does this module import anything
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def exports(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package whose public names live in other modules.

    Args:
        package: its `__name__`
        homes: name → the module that defines it
    """

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(homes[name]), name)

    return find
