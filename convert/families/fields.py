"""Reading fields of config.json with errors that name the field."""

from __future__ import annotations

from typing import Any

from llmc.errors import InputError

_MISSING = object()


class Fields:
    """Typed access to a mapping; `prefix` names a nested mapping in errors (`rope_scaling.`)."""

    def __init__(self, config: dict[str, Any], prefix: str = "") -> None:
        self.config = config
        self.prefix = prefix

    def integer(self, name: str, default: Any = _MISSING, minimum: int = 1) -> int:
        value = self._get(name, default)
        if type(value) is not int or value < minimum:
            raise InputError(f"`{self.prefix}{name}` must be an integer of at least {minimum}, not {value!r}")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        value = self._get(name, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise InputError(f"`{self.prefix}{name}` must be a positive number, not {value!r}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if type(value) is not bool:
            raise InputError(f"`{self.prefix}{name}` must be true or false, not {value!r}")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id, a list of them, or null."""
        value = self.config.get(name)
        ids = tuple(value) if isinstance(value, list) else () if value is None else (value,)
        if not all(type(number) is int and number >= 0 for number in ids):
            raise InputError(f"`{self.prefix}{name}` must be a token id or a list of them, not {value!r}")
        return ids

    def require(self, name: str, only: Any, why: str) -> None:
        """Refuses any other value than `only` (which is also the default)."""
        if (value := self._get(name, only)) != only:
            raise InputError(f"`{self.prefix}{name}` is {value!r}, but only {only!r} is supported: {why}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        if value is not None:
            return value
        if default is _MISSING:
            raise InputError(f"`{self.prefix}{name}` is missing")
        return default
