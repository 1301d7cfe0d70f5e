"""What all sections of a recipe share: strictness, shares, paths, and errors with the place of what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from llmc.errors import InputError
from llmc.patterns import shown
from llmc.plain_yaml import Location
from llmc.registry import unknown
from llmc.visible import unseen

_T = TypeVar("_T")


def _share(value: object) -> object:
    """`2%` is 0.02."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip())):
        return float(match[1]) / 100
    if isinstance(value, str):
        raise ValueError("write a share as 0.02 or 2%")
    return value


Share = Annotated[
    float,
    BeforeValidator(_share),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*%$"}]}),
]


def path_or_id(text: str) -> str:
    """A path that the system can look up, or an id: no file has to be there."""
    if unseen(text):
        raise at((), f"{shown(text)} holds a control character")
    if len(text) > 1024 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise at((), f"{shown(text)} is longer than a path, an id or a part of them can be")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise at((), f"{shown(text.partition('/')[0])} is no user's folder on this machine") from None
    return text


PathOrId = Annotated[str, AfterValidator(path_or_id)]


class Section(BaseModel):
    """A mapping of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        return ((name, value) for name, value in super().__repr_args__() if name in self.model_fields_set)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: object) -> object:
        refuse_unknown_keys(cls, value)
        return value


def refuse_unknown_keys(model: type[BaseModel], value: object) -> None:
    """Raises for the first key of a mapping that `model` does not have."""
    for key in value if isinstance(value, Mapping) else ():
        if key not in model.model_fields:
            raise at((key,), unknown("key", str(key), model.model_fields))


def at(path: Location, message: str) -> PydanticCustomError:
    """An error below the value that is being validated."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "path": path})


def as_value_error(check: Callable[[], _T], *path: str | int) -> _T:
    """Return what `check` returns; what it refuses is an error at `path`, below the value that is being validated."""
    try:
        return check()
    except InputError as error:
        raise at(path, str(error)) from error


def explain(error: Any) -> tuple[Location, str]:
    """Where and what, of one of pydantic's errors."""
    location, context = tuple(error["loc"]), error.get("ctx", {})
    if "path" in context:
        return (*location, *context["path"]), error["msg"]
    if error["type"] == "missing":
        return location[:-1], f"`{location[-1]}` is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    value = error["input"]
    return location, f"{message}, not {_shown(value)}" if isinstance(value, str | int | float | None) else message


def _shown(value: object) -> str:
    return shown(value) if isinstance(value, str) else repr(value)
