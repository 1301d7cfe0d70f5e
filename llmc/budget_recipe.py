"""A recipe's budget: how large the result may be, in place of a scheme for every role."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from llmc.recipe_section import as_value_error, at

AS_IS = "as-is"  # in the place of a scheme: a module keeps the precision that it has
KEYS = ("size", "bits", "fit")

_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_MOST = 1 << 60
_SIZE = r"\d{1,18}(?:\.\d{1,9})?\s*(?:[kKMGT]?B|[KMGT]iB)"
_FIT = rf"{_SIZE}\s*@\s*\d{{1,12}}\s*[KM]?"


def read_size(value: str) -> int:
    """Bytes of `19GiB` or `500 MB`; ValueError for anything else."""
    match = re.fullmatch(r"([\d.]+)\s*(\w+)", value.strip()) if re.fullmatch(_SIZE, value.strip()) else None
    if match is None or not 0 < (count := round(float(match[1]) * _UNITS[match[2]])) <= _MOST:
        raise ValueError("write a size as 19GiB or 500MB")
    return count


class Fit(NamedTuple):
    """What `fit` says: bytes of a GPU's memory, and tokens of context."""

    bytes: int
    tokens: int


def read_fit(value: str) -> Fit:
    """`24GiB@32K`: a K of tokens is 1,024; ValueError for anything else."""
    if re.fullmatch(_FIT, value.strip()):
        memory, _, tokens = value.partition("@")
        unit = {"K": 1 << 10, "M": 1 << 20}.get(tokens.strip()[-1], 1)
        if count := int(tokens.strip().rstrip("KM")) * unit:
            return Fit(read_size(memory), count)
    raise ValueError("write a GPU's memory and the tokens of context as 24GiB@32K")


def _size(value: object) -> object:
    if isinstance(value, str):
        return read_size(value)
    return value


def _fit(value: str) -> str:
    read_fit(value)
    return value


Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{_SIZE}$"}]}),
    Field(gt=0, le=_MOST),
]
FitText = Annotated[str, AfterValidator(_fit), WithJsonSchema({"type": "string", "pattern": f"^{_FIT}$"})]


def name_or_names(given: object) -> object:
    """The same; one error of the recipe for what is neither a string nor a list of strings."""
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise ValueError("must be a valid string, or a list of strings")
    for index, name in enumerate(given):
        if not isinstance(name, str):
            raise at((index,), f"must be the name of a scheme, not {name!r}")
    return given


def canonical_choices(names: str | list[str] | None) -> str | list[str] | None:
    """A scheme, or several, by our names."""
    from llmc.quant.schemes.names import canonical

    return canonical(names) if isinstance(names, str) else None if names is None else [*map(canonical, names)]


def check_choices(names: Sequence[str], *path: str) -> None:
    """A list of schemes; an error of the recipe, at `path`, for one that is none, or occurs twice, or for no scheme."""
    from llmc.quant.schemes import scheme

    if not names:
        raise at(path, "an empty list leaves no choice; name some schemes, or leave the key out")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise at((*path, index), f"{name} is named twice")
        if name != AS_IS:
            as_value_error(lambda name=name: scheme(name), *path, index)  # type: ignore[misc]


def check_budget(given: Mapping[str, Any], rules: Sequence[Any], candidates: Sequence[str] | None) -> None:
    """An error of the recipe for two budgets, or for choices without one.

    Args:
        given: The recipe's values of `KEYS`.
        rules: Those of `quantize`.
        candidates: As the recipe names them.
    """
    named = [key for key in KEYS if given[key] is not None]
    if len(named) > 1:
        raise at((named[1],), f"there is a budget already, {named[0]}: keep one of the two")
    if named:
        return
    if candidates is not None:
        raise at(("candidates",), "what to choose from takes a budget: add size, bits or fit, or remove it")
    for index, rule in enumerate(rules):
        place = ("quantize", index)
        if rule.least is not None:
            raise at((*place, "least"), "a bound is for a budget: add size, bits or fit, or name a `scheme`")
        if rule.scheme is None:
            raise at(place, "`scheme` is missing")
        if not isinstance(rule.scheme, str):
            raise at((*place, "scheme"), "several schemes are a choice, which takes a budget: add size, bits or fit")
        if rule.scheme == AS_IS:
            raise at(
                (*place, "scheme"),
                f"{AS_IS} is for recipes with a budget (size, bits or fit); without one, what no rule matches stays as "
                "it is",
            )


def shown_budget(key: str, value: object) -> str:
    """`size: 19.0 GiB`, `bits: 4.5`, `fit: 24GiB@32K`."""
    from llmc.progress import size

    return f"{key}: {size(value) if key == 'size' and isinstance(value, int) else value}"
