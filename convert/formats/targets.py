"""Which modules a config group of compressed-tensors is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmc.convert.fields import Fields
from llmc.errors import InputError


def read_targets(group: Fields) -> tuple[str, ...]:
    """Class names, module names, or `re:` and a pattern that the beginning of a name matches."""
    targets = group.strings("targets")
    for target in targets:
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise InputError(f"`{group.prefix}targets`: {target!r} is no regular expression ({error})") from error
    return targets


def is_target(module: str, targets: Sequence[str]) -> bool:
    """Whether a linear layer is among them."""
    return any(
        bool(re.match(target[3:], module)) if target.startswith("re:") else target in ("Linear", module)
        for target in targets
    )
