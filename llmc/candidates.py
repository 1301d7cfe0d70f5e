"""What a budget decides about: modules that have to share a scheme, and the rules that say which they can have."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.tensor_names import ModuleName
from llmc.errors import InputError
from llmc.patterns import Budget, Pattern, compile_pattern
from llmc.quant.assign import END_ROLES, end_modules, linear_modules
from llmc.recipe import Quantize
from llmc.scheme_options import Group, SchemeOptions


def candidate_groups(options: SchemeOptions) -> list[Group]:
    """What the recipe's budget is to decide about, in the order of the model.

    Raises:
        InputError: A rule matches nothing, or leaves no choice.
    """
    checkpoint, recipe = options.checkpoint, options.recipe
    rules = _matched(checkpoint, recipe.quantize)
    members: dict[str, list[str]] = {}
    for module in quantizable_modules(checkpoint, options.layout.takes_ends):
        members.setdefault(group_of(checkpoint, module), []).append(module)
    return [
        options.group(name, tuple(modules), [rules.get(module) for module in modules])
        for name, modules in members.items()
    ]


def quantizable_modules(checkpoint: Checkpoint, ends: bool = True) -> list[str]:
    """Every linear layer of the decoder and MTP layers; embedding and head, where they are asked for."""
    return [*linear_modules(checkpoint), *(end_modules(checkpoint) if ends else ())]


def group_of(checkpoint: Checkpoint, module: str) -> str:
    """The name of what shares a scheme with a module."""
    parsed = ModuleName.parse(module)
    if parsed.expert is not None:
        return f"model.layers.{parsed.layer}.{parsed.block}"
    whole, members = checkpoint.stored_names.joined_module(parsed)
    return str(whole) if len(members) > 1 else module


def _matched(checkpoint: Checkpoint, rules: Sequence[Quantize]) -> dict[str, Quantize]:
    """Module → the first rule that matches it; InputError for one that matches nothing."""
    budget, patterns = Budget(), list[Pattern | None]()
    for rule in rules:
        patterns.append(compile_pattern(rule.match[3:], budget) if rule.match.startswith("re:") else None)
    found: dict[str, int] = {}
    modules, ends = quantizable_modules(checkpoint), end_modules(checkpoint)
    roles: Sequence[str]
    for module in modules:
        tied = module in ends and checkpoint.spec.tie_word_embeddings
        roles = END_ROLES if tied else (checkpoint.role(f"{module}.weight"),)
        for index, (rule, pattern) in enumerate(zip(rules, patterns, strict=True)):
            if rule.match in roles if pattern is None else module not in ends and pattern.fullmatch(module):
                found[module] = index
                break
    for index, rule in enumerate(rules):
        if index not in found.values():
            known = sorted({checkpoint.role(f"{module}.weight") for module in modules})
            raise InputError(
                f"quantize rule `match: {rule.match}` matches nothing that an earlier rule left; this model has "
                f"{', '.join(known)}, and modules such as {modules[0]}"
            )
    return {module: rules[index] for module, index in found.items()}
