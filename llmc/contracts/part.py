"""What the models of an artifact's JSON files are made of.

Those files come with a model from somebody else, so each is held against its model once, where it is read; what is
behind that may trust types and ranges. Imported when an artifact is opened, not with the runtime: pydantic takes its
time.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from llmc.errors import InputError

_MOST_BYTES = 2**53
_RESERVED = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|\u2028\u2029\u202a-\u202e\u2066-\u2069]')


def file_name(name: str) -> str:
    """A file's name in an artifact: relative, with `/` between its parts, on every system the same file; and none of
    git's, which runs what its configuration says.
    """
    refused = any(part in ("", ".", "..") or part.lower() == ".git" for part in name.split("/"))
    if len(name) > 1024 or refused or _RESERVED.search(name):
        raise ValueError(f"{name[:100]!r} is no name of a file inside the artifact")
    return name


def _bare(name: str) -> str:
    if "/" in file_name(name):
        raise ValueError(f"{name[:100]!r} is no bare name of a file")
    return name


Count = Annotated[int, Field(ge=0, lt=_MOST_BYTES)]
Positive = Annotated[int, Field(ge=1, lt=_MOST_BYTES)]
AxisSize = Annotated[int, Field(ge=1, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(file_name)]
BareName = Annotated[str, AfterValidator(_bare)]


class Part(BaseModel):
    """Keys that are not named here are ignored: later releases may write more.

    The order of the fields is the order of the keys in the file.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    def to_json(self) -> dict[str, Any]:
        """Return what is written: every field that was given, in the order of the class."""
        return self.model_dump(exclude_unset=True)


class File(Part):
    """Size and hash of a file, as it was built."""

    sha256: Sha256 = Field(description="SHA-256 of its content, in hexadecimal digits")
    bytes: Count = Field(description="its size")


class LimitRecord(Part):
    """A gate's limit that is held not against a value, but against the end of its interval."""

    limit: Number = Field(description="the limit")
    confidence: Annotated[int, Field(ge=1, lt=100)] = Field(description="of the one-sided interval, in percent")


class Nothing(Part):
    """`{}`, where there is nothing to say."""

    model_config = ConfigDict(extra="forbid")

    def __bool__(self) -> Literal[False]:
        return False


Checked = TypeVar("Checked", bound=Part)


def checked(part: type[Checked], value: Any, what: str) -> Checked:
    """The value as a `part`; InputError, `what` first, with the place of the first thing that is wrong."""
    try:
        return part.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = ": ".join(each for each in (repr(place)[1:-1][:200], first["msg"].removeprefix("Value error, ")) if each)
        raise InputError(f"{what} ({said}); build or download the artifact again") from error
