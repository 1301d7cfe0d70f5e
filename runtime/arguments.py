"""What callers give, checked: the value as it is worked with, or an InputError of one line that names the argument.

By hand, since pydantic would cost `import llmc.runtime` 0.1 s and 10 MB, half as much again, for a dozen arguments. As
in its strict mode, nothing is taken for what it is not: True is no number, 3.0 no whole one, bytes are no tokens.
numpy's numbers are numbers.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np

from llmc.errors import InputError

_MOST = 2**31 - 1  # what every backend can count
_PROMPT = "a prompt is a text, a list of tokens or a list of messages (role, content)"


def refuse(name: str, value: object, wanted: str) -> NoReturn:
    try:
        shown = reprlib.repr(value)
    except Exception:  # integers of more digits than Python prints, and whatever else
        shown = f"a very large or strange {type(value).__name__}"
    raise InputError(f"{name} is {shown}; it has to be {wanted}")


def whole(name: str, value: object, low: int, high: int = _MOST) -> int:
    limit = f"at least {low}" + f" and at most {high}" * (high < _MOST)
    if isinstance(value, bool) or not isinstance(value, Integral):
        refuse(name, value, f"a whole number, {limit}")
    found = int(value)
    if not low <= found <= high:
        refuse(name, value, limit if high < _MOST or found < low else f"at most {high}")
    return found


def real(name: str, value: object, fits: Callable[[float], bool], limit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        refuse(name, value, f"a number, {limit}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or not fits(found):
        refuse(name, value, limit if math.isfinite(found) else f"a finite number, {limit}")
    return found


def flag(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        refuse(name, value, "True or False")
    return bool(value)


def function(name: str, value: object) -> None:
    if not callable(value):
        refuse(name, value, "something that can be called")


def path(name: str, value: object) -> str:
    found = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(found, str) or not found:
        refuse(name, value, "a path, as text or pathlib.Path")
    return found


def texts(name: str, value: object) -> tuple[str, ...]:
    """One text or several."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (Sequence, set, frozenset)) or isinstance(value, (bytes, bytearray, memoryview)):
        refuse(name, value, "a text or a list of texts")
    for each in value:
        if not isinstance(each, str):
            refuse(f"one of {name}", each, "a text")
    return tuple(value)


def well_formed(text: str) -> str:
    """A text that can be encoded: half of a surrogate pair is what is left of bytes that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is no valid text at character {error.start}; give it in UTF-8") from error
    return text


def is_one_prompt(prompts: Any) -> bool:
    """Whether this is a prompt and not several; InputError for what is neither."""
    if isinstance(prompts, np.ndarray) and prompts.ndim:
        return prompts.ndim == 1 and len(prompts) > 0
    _sequence("prompts", prompts)
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (Integral, Mapping)))


def prompt(value: Any, name: str = "the prompt") -> Any:
    """A text, or a list of tokens, or a list of messages."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    _sequence(name, value)
    if len(value) and isinstance(value[0], Mapping):
        return messages(value)
    for each in value:
        if type(each) is not int and (isinstance(each, bool) or not isinstance(each, Integral)):
            refuse(f"one of {name}'s tokens", each, f"a whole number; {_PROMPT}")
        if abs(int(each)) > _MOST:
            refuse(f"one of {name}'s tokens", each, "below the size of the vocabulary")
    return [int(each) for each in value]


def tokens(name: str, value: Any) -> list[int]:
    if isinstance(value, np.ndarray) and value.ndim:
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        refuse(name, value, "a list of whole numbers")
    return [whole(f"one of {name}", each, 0) for each in value]


def several_prompts(value: Any) -> list[Any]:
    """The prompts, one list each would do; InputError for one that stands alone."""
    if is_one_prompt(value):
        refuse("prompts", value, "a list of prompts, also for one: [prompt]")
    return list(value)


def messages(value: Any) -> list[Mapping[str, Any]]:
    """Of a chat; there is at least one."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        refuse("messages", value, 'a list of {"role": …, "content": …}, at least one')
    for place, each in enumerate(value):
        if not isinstance(each, Mapping) or not isinstance(each.get("role"), str):
            refuse(f"message {place}", each, 'as in {"role": "user", "content": "Hi"}')
        if not isinstance(content := each.get("content"), (str, list, tuple, type(None))):
            refuse(f"the content of message {place}", content, "a text or a list of parts")
    return list(value)


def images_of_each(value: Any, prompts: int, single: bool) -> list[Any]:
    """The images of each prompt: a list for one, a list of lists for several."""
    if value is None:
        return [()] * prompts
    wanted = "a list of paths or arrays" if single else f"a list of {prompts} lists, one of each prompt's images"
    several = [value] if single else value
    for each in (value, *(() if single or not isinstance(value, (list, tuple)) else value)):
        if not isinstance(each, (list, tuple)):
            refuse("images", value, wanted)
    if len(several) != prompts:
        refuse("images", value, wanted)
    return list(several)


def template(value: Any) -> dict[str, Any]:
    """Variables for a chat template; None is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name != "messages" for name in value):
        refuse("template", value, "variables of the chat template by name, such as {'enable_thinking': False}")
    return dict(value)


def _sequence(name: str, value: Any) -> None:
    if isinstance(value, (bytes, bytearray, memoryview)):
        refuse(name, value, "text; decode it: value.decode()")
    if isinstance(value, Mapping):
        refuse(name, value, f"in a list; {_PROMPT}")
    if not isinstance(value, Sequence):
        raise InputError(f"{name} cannot be of type {type(value).__name__}; {_PROMPT}")
