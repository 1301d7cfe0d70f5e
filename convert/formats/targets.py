"""Which modules a config group of compressed-tensors is for."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.convert.fields import Fields
from llmc.errors import InputError
from llmc.patterns import Budget, Pattern, compile_pattern

MAX_PATTERNS = 1000  # a config with more would keep a processor busy for minutes


@dataclass(frozen=True)
class Targets:
    """names: of classes or modules; patterns: that the beginning of a module's name matches."""

    names: frozenset[str] = frozenset({"Linear"})
    patterns: tuple[Pattern, ...] = ()

    def match(self, module: str) -> bool:
        """Whether a linear layer is among them."""
        return "Linear" in self.names or module in self.names or any(each.match(module) for each in self.patterns)


def read_targets(group: Fields, budget: Budget | None = None) -> Targets:
    """Class names, module names, or `re:` and a pattern; `budget`: what all groups' patterns may take."""
    given = dict.fromkeys(group.strings("targets"))
    texts = [target[3:] for target in given if target.startswith("re:")]
    if len(texts) > MAX_PATTERNS:
        raise InputError(f"`{group.prefix}targets` has {len(texts):,} patterns; at most {MAX_PATTERNS:,} are read")
    return Targets(
        frozenset(target for target in given if not target.startswith("re:")),
        tuple(pattern_of(f"{group.prefix}targets", text, budget or Budget()) for text in texts),
    )


def pattern_of(field: str, text: str, budget: Budget) -> Pattern:
    """InputError, with the field of config.json that it stands in, for what is no pattern."""
    try:
        return compile_pattern(text, budget)
    except InputError as error:
        raise InputError(f"`{field}`: {error}") from error
