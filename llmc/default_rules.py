"""What is quantized when a recipe does not say, in groups that the model's own widths allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmc.convert.formats import layout
from llmc.convert.layer_modules import layer_modules
from llmc.convert.spec import LinearSpec, ModelSpec, Role
from llmc.convert.tensor_names import ModuleName
from llmc.quant.assign import Rule, check_layout
from llmc.quant.prune import routers
from llmc.recipe import Recipe

GROUPS = 128, 64, 32  # the widest that divides every row is the smallest on disk


@dataclass(frozen=True)
class Rules:
    """Rules of a recipe, or the default ones.

    Attributes:
        notes: one line for each way in which the default rules are not the usual ones, and why
    """

    rules: list[Rule]
    notes: list[str] = field(default_factory=list)


def default_role(spec: ModelSpec) -> Role:
    """What is quantized by default: experts, or the MLPs of a dense model."""
    return "experts" if routers(spec.mlps) else "dense_mlp"


def rules_of(recipe: Recipe, spec: ModelSpec) -> Rules:
    """The recipe's rules, as they stand; where it has none, those that fit the model, and none for a layout that only
    keeps what is there. InputError for a layout that has no place for the default ones.
    """
    if recipe.quantize:
        return Rules([Rule(rule.match, rule.only_scheme, rule.method) for rule in recipe.quantize])
    chosen = layout(recipe.layout)
    if chosen.keeps:
        return Rules([])
    found = default_rules(spec)
    check_layout(found.rules, chosen)
    return found


def default_rules(spec: ModelSpec) -> Rules:
    """int4 in the widest groups that divide the inputs of each kind of module; a kind that none divides is left alone.

    Experts are one kind, since programs compute a layer's experts with one size of group; of a dense model each
    projection is one.
    """
    role, kinds = default_role(spec), _inputs(spec)
    groups = {kind: _widest(inputs) for kind, inputs in kinds.items()}
    if len(set(groups.values())) == 1 and (group := next(iter(groups.values()))):
        rules = [Rule(role, f"int4-g{group}")]
    else:
        rules = [
            Rule(_pattern(spec, named), f"int4-g{group}")
            for group in GROUPS
            if (named := [kind for kind, mine in groups.items() if mine == group])
        ]
    usual = GROUPS[0]
    notes = [_note(kinds, named, group) for group, named in _by_group(groups).items() if group != usual]
    return Rules(rules, notes)


def _inputs(spec: ModelSpec) -> dict[str, set[int]]:
    """Kind of module → how many inputs those of the kind have: of what the default rules are about."""
    role, found = default_role(spec), dict[str, set[int]]()
    for layer in {id(each): each for each in (layer_modules(spec, index) for index in range(spec.num_layers))}.values():
        for name, module in layer.items():
            parsed = ModuleName.parse(name)
            kind = role if role == "experts" else parsed.projection
            wanted = parsed.expert is not None if role == "experts" else parsed.block == "mlp"
            if wanted and isinstance(module, LinearSpec):
                found.setdefault(kind, set()).add(module.inputs)
    return found


def _widest(inputs: set[int]) -> int | None:
    return next((group for group in GROUPS if all(each % group == 0 for each in inputs)), None)


def _by_group(groups: Mapping[str, int | None]) -> dict[int | None, list[str]]:
    found: dict[int | None, list[str]] = {}
    for kind, group in groups.items():
        found.setdefault(group, []).append(kind)
    return found


def _pattern(spec: ModelSpec, projections: Sequence[str]) -> str:
    """A rule's `match` for these projections of the MLPs of all layers but those for multi-token prediction."""
    ahead = "|".join(map(str, range(spec.num_layers, spec.num_all_layers)))
    layer = rf"(?!({ahead})\.)\d+" if ahead else r"\d+"
    return rf"re:model\.layers\.{layer}\.mlp\.({'|'.join(projections)})"


def _note(kinds: Mapping[str, set[int]], named: Sequence[str], group: int | None) -> str:
    step = GROUPS[-1] if group is None else GROUPS[0]
    odd = sorted({inputs for kind in named for inputs in kinds[kind] if inputs % step})
    because = f"{' and '.join(f'{each:,}' for each in odd)} inputs are no multiple of {step}"
    if group is None:
        return f"default recipe: {' and '.join(named)} stay as they are, since {because}, the smallest group"
    return f"default recipe: {' and '.join(named)} in groups of {group} instead of {GROUPS[0]}, since {because}"
