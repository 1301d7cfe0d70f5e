"""Rules that say what was found for every module: few, and no other module matches them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.tensor_names import ModuleName
from llmc.errors import LlmcError
from llmc.quant.assign import Rule, assign, end_modules, linear_modules

_MOST = 3500  # characters of a pattern, of the 4,096 that it may have
Chosen = tuple[str, str]  # scheme and method


def explicit_rules(checkpoint: Checkpoint, chosen: Mapping[str, Chosen]) -> list[Rule]:
    """Return rules by which `assign` gives every module just what was chosen for it, and leaves all others as they are.

    A role all of whose modules have one scheme is named; of other roles each scheme has a pattern, or a few.

    Args:
        checkpoint: The original.
        chosen: Module → scheme and method, of those that are to be quantized.
    """
    by_role: dict[str, dict[str, Chosen | None]] = {}
    for module in (*linear_modules(checkpoint), *end_modules(checkpoint)):
        by_role.setdefault(checkpoint.role(f"{module}.weight"), {})[module] = chosen.get(module)
    rules, mixed = list[Rule](), dict[str, Chosen]()
    for role, found in by_role.items():
        kinds = set(found.values())
        if len(kinds) == 1 and (only := kinds.pop()) is not None:
            rules.append(Rule(role, *only))
        else:
            mixed |= {module: given for module, given in found.items() if given is not None}
    layers = _layers_of_kinds([*map(ModuleName.parse, linear_modules(checkpoint))])
    for given in sorted(set(mixed.values())):
        mine = _layers_of_kinds([ModuleName.parse(module) for module, each in mixed.items() if each == given])
        rules += [Rule(f"re:{pattern}", *given) for pattern in _patterns(mine, layers)]
    said = {module: found.scheme.name for module, found in assign(checkpoint, rules).items()} if rules else {}
    if said != {module: name for module, (name, _) in chosen.items()}:
        raise LlmcError("the rules that a budget was solved into say something else; this is a bug in llmc")
    return rules


_Kind = tuple[str, bool, str]  # block, whether it has experts, projection


def _layers_of_kinds(modules: list[ModuleName]) -> dict[_Kind, tuple[int, ...]]:
    found: dict[_Kind, dict[int, None]] = {}
    for each in modules:
        assert each.layer is not None
        found.setdefault((each.block, each.expert is not None, each.projection), {})[each.layer] = None
    return {kind: tuple(sorted(layers)) for kind, layers in found.items()}


def _patterns(mine: Mapping[_Kind, tuple[int, ...]], all_layers: Mapping[_Kind, tuple[int, ...]]) -> Iterator[str]:
    """Expressions that match the modules of these kinds in these layers, and no others."""
    parts = [_part(layers, kinds, all_layers) for layers, kinds in _with_equal_layers(mine)]
    while parts:
        count, length = 0, 0
        while count < len(parts) and (count == 0 or length + len(parts[count]) < _MOST):
            length += len(parts[count]) + 1
            count += 1
        some, parts = parts[:count], parts[count:]
        yield r"model\.layers\." + _any(some)


def _with_equal_layers(mine: Mapping[_Kind, tuple[int, ...]]) -> list[tuple[tuple[int, ...], list[_Kind]]]:
    """Kinds of one block that lie in the same layers, together."""
    ordered = sorted(mine, key=lambda kind: (kind[:2], mine[kind], kind[2]))
    grouped = groupby(ordered, key=lambda kind: (kind[:2], mine[kind]))
    return [(layers, [*kinds]) for (_, layers), kinds in grouped]


def _part(layers: tuple[int, ...], kinds: list[_Kind], all_layers: Mapping[_Kind, tuple[int, ...]]) -> str:
    r"""`(0|3)\.mlp\.experts\.\d+\.(down_proj|up_proj)`"""
    block, experts, _ = kinds[0]
    everywhere = all(all_layers[kind] == layers for kind in kinds)
    numbers = r"\d+" if everywhere else _any([str(layer) for layer in layers])
    middle = [re.escape(block)] if block else []
    return r"\.".join([numbers, *middle, *([r"\d+"] if experts else []), _any([re.escape(kind[2]) for kind in kinds])])


def _any(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"({'|'.join(words)})"
