"""Reading fields of config.json with errors that name the field."""

from __future__ import annotations

from typing import Any

from llmc.errors import InputError

MISSING = object()  # instead of a default: the field has to be there
_MAX_INTEGER = 2**28  # no size or token id is larger; keeps the bytes of a matrix inside 64 bits


class Fields:
    """Typed access to a JSON object; `prefix` is where it lies (`rope_scaling.`). null counts as absent."""

    def __init__(self, config: dict[str, Any], prefix: str = "") -> None:
        self.config = config
        self.prefix = prefix

    def has(self, name: str) -> bool:
        return self.config.get(name) is not None

    def integer(self, name: str, default: Any = MISSING, minimum: int = 1, maximum: int = _MAX_INTEGER) -> int:
        value = self._get(name, default)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(name, f"an integer from {minimum} to {maximum}")
        return value

    def count(self, name: str, default: Any = MISSING, minimum: int = 1) -> int:
        """Of things made one by one (layers, experts, rotary channels): never millions."""
        return self.integer(name, default, minimum, maximum=10_000)

    def number(self, name: str, default: Any = MISSING) -> float:
        """Positive and finite."""
        value = self._get(name, default)
        if type(value) not in (int, float) or not 1e-30 < value < 1e30:
            raise self.error(name, "a positive number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def mapping(self, name: str) -> Fields:
        """A nested object; an empty one when it is absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Fields(value, f"{self.prefix}{name}.")

    def one_of(self, name: str, *allowed: Any, default: Any = None) -> Any:
        value = self._get(name, default)
        if value not in allowed:
            raise self.error(name, " or ".join(map(repr, allowed)))
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._get(name, MISSING)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "a list of strings")
        return tuple(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers; an empty one when it is absent."""
        value = self._get(name, [])
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(name, "a list of integers")
        return tuple(value)

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of so many positive numbers."""
        value = self._get(name, MISSING)
        wrong = not isinstance(value, list) or len(value) != count
        if wrong or not all(type(item) in (int, float) and 1e-30 < item < 1e30 for item in value):
            raise InputError(f"`{self.prefix}{name}` must be a list of {count} positive numbers")
        return [float(item) for item in value]

    def block(self, name: str) -> tuple[int, int]:
        """Two positive integers."""
        value = self._get(name, None)
        if isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value):
            return value[0], value[1]
        raise self.error(name, "two positive integers")

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id, a list of them, or null."""
        value = self._get(name, [])
        ids = tuple(value) if isinstance(value, list) else (value,)
        if not all(type(number) is int and 0 <= number <= _MAX_INTEGER for number in ids):
            raise self.error(name, "a token id or a list of them")
        return ids

    def require(self, name: str, only: Any, why: str) -> None:
        """Refuses any other value than `only`, which is also the default."""
        if (value := self._get(name, only)) != only:
            raise InputError(f"`{self.prefix}{name}` is {value!r}, but only {only!r} is supported: {why}")

    def error(self, name: str, expected: str) -> InputError:
        return InputError(f"`{self.prefix}{name}` must be {expected}, not {self.config.get(name)!r}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        if value is not None:
            return value
        if default is MISSING:
            raise InputError(f"`{self.prefix}{name}` is missing")
        return default
