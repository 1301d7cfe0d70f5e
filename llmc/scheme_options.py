"""The schemes that modules which have to share one can have: none that layout, model or target has no place for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from llmc.budget_recipe import AS_IS
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import layout
from llmc.convert.quantized_weight import bits_of
from llmc.convert.spec import ModelSpec
from llmc.convert.targets import Target
from llmc.convert.tensor_names import ModuleName
from llmc.default_rules import GROUPS
from llmc.errors import InputError
from llmc.quant.assign import END_ROLES, refuse_cut_scales
from llmc.quant.schemes import scheme
from llmc.recipe import Quantize, Recipe

Targets = Sequence[tuple[Target[Any], Any]]
_WIDEST = ("int5", "int6", "int8")  # in the widest groups that fit


@dataclass(frozen=True)
class Option:
    """A scheme that a group can have.

    Attributes:
        scheme: None: it stays as it is.
        bytes: Of the group's modules that are left after pruning, as they are stored.
        device_bytes: The same, as the targets hold them in a GPU's memory.
    """

    scheme: str | None
    bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Group:
    """Modules that share a scheme: those of a layer's experts, and what the family stores as one matrix.

    Attributes:
        name: What they have in common: `model.layers.3.mlp.experts`.
        role: Of its weights.
        modules: By their names, those included that are pruned.
        parameters: Of those that are left.
        options: At least one.
        methods: Module → method by which it is quantized.
    """

    name: str
    role: str
    modules: tuple[str, ...]
    parameters: int
    options: tuple[Option, ...]
    methods: Mapping[str, str]

    @property
    def can_be_quantized(self) -> bool:
        """Whether there is a scheme among its options."""
        return any(option.scheme is not None for option in self.options)

    def to_json(self) -> Any:
        """What of it, beside sensitivities, decides an allocation."""
        return [self.name, self.parameters, [*map(astuple, self.options)], sorted(set(self.methods.items()))]


def default_candidates() -> list[str]:
    """Those of a recipe that names none, whatever the model: what does not fit it is left out.

    Not the 4-bit floats: nvfp4 is as large as int4-g32, and the search for its scales takes a dozen times as long.
    """
    integers = [f"int{bits}-g{group}" for bits in (2, 3, 4) for group in sorted(GROUPS)]
    return [*integers, *(f"{bits}-g{group}" for bits in _WIDEST for group in GROUPS), "fp8-block", AS_IS]


class _Kind(NamedTuple):
    """What groups of several layers have in common: which (block, projection, shape) there are in them."""

    role: str
    stacked: bool
    members: tuple[tuple[str, str, tuple[int, int]], ...]


class SchemeOptions:
    """Finds what groups can become; layers of one kind are looked at once.

    Args:
        checkpoint: The original.
        recipe: With candidates, and rules that are constraints.
        spec: Of the model after pruning.
        kept: Experts of each layer that stay; 0: it has none.
        stored_bytes: Of layout, scheme and shape.
        targets: With their options.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        spec: ModelSpec,
        kept: int,
        stored_bytes: Callable[..., int],
        targets: Targets,
    ) -> None:
        self.checkpoint, self.recipe, self.spec, self.kept = checkpoint, recipe, spec, kept
        self.stored_bytes, self.targets, self.layout = stored_bytes, targets, layout(recipe.layout)
        self.candidates = recipe.candidates or default_candidates()
        self.obstacles: dict[tuple[_Kind, str, bool], str | None] = {}

    def group(self, name: str, modules: tuple[str, ...], rules: Sequence[Quantize | None]) -> Group:
        """Return the group of these modules.

        Args:
            rules: That of each module; None: no rule matches it.

        Raises:
            InputError: There is no scheme that all of them can have.
        """
        parsed = [ModuleName.parse(module) for module in modules]
        shapes = [self._shape(module) for module in modules]
        left = [index for index, each in enumerate(parsed) if not self._is_pruned(each)]
        kind = _Kind(
            self.checkpoint.role(f"{modules[0]}.weight"),
            parsed[0].expert is not None,
            tuple(
                dict.fromkeys((each.block, each.projection, shape) for each, shape in zip(parsed, shapes, strict=True))
            ),
        )
        counts = Counter(shapes[index] for index in left)
        distinct = [*{id(rule): rule for rule in rules}.values()]
        options = []
        if all(AS_IS in self._choices(rule) for rule in distinct):
            parts = [self.checkpoint.parts(f"{modules[index]}.weight") for index in left]
            stored = sum(part.nbytes for each in parts for part in each.values())
            options.append(Option(None, stored, stored))
        for each in self._named(distinct):
            if self._obstacle(kind, modules, each, pinned=self._pins(distinct)) is None:
                options.append(self._option(kind, counts, each))
        if not options:
            raise self._no_choice(name, kind, modules, distinct)
        usual = Quantize.model_fields["method"].default
        methods = {module: usual if rule is None else rule.method for module, rule in zip(modules, rules, strict=True)}
        parameters = sum(rows * columns * count for (rows, columns), count in counts.items())
        return Group(name, kind.role, modules, parameters, self._fewer(options), methods)

    def _named(self, rules: Sequence[Quantize | None]) -> list[str]:
        """Schemes that all of these rules allow, in the order in which they are named."""
        named = dict.fromkeys(name for rule in rules for name in self._choices(rule) if name != AS_IS)
        return [name for name in named if all(name in self._choices(rule) for rule in rules)]

    def _choices(self, rule: Quantize | None) -> Collection[str]:
        if rule is None:
            return self.candidates
        if isinstance(rule.scheme, str):
            return [rule.scheme]
        if rule.scheme is not None:
            return rule.scheme
        if rule.least is None:
            return self.candidates
        least = bits_of(scheme(rule.least).code_type)
        more = [name for name in self.candidates if name != AS_IS and bits_of(scheme(name).code_type) >= least]
        return dict.fromkeys([rule.least, *more, AS_IS])

    def _pins(self, rules: Sequence[Quantize | None]) -> bool:
        """Whether a scheme is demanded: then a target that widens it is no reason against it."""
        return all(rule is not None and isinstance(rule.scheme, str) for rule in rules)

    def _obstacle(self, kind: _Kind, modules: Sequence[str], name: str, pinned: bool = False) -> str | None:
        """Why modules of a kind cannot have a scheme; None: they can."""
        key = (kind, name, pinned)
        if key not in self.obstacles:
            self.obstacles[key] = self._found_obstacle(kind, modules, name, pinned)
        return self.obstacles[key]

    def _found_obstacle(self, kind: _Kind, modules: Sequence[str], name: str, pinned: bool) -> str | None:
        chosen = scheme(name)
        if not self.layout.takes(chosen.spec):
            return f"layout {self.layout.name} has no place for {name}"
        if chosen.activations is not None and kind.role == "kv_b_proj":
            return f"{name} rounds inputs, which this layer does not have when attention works on the latent cache"
        if (chosen.activations is not None or chosen.dynamic_groups) and kind.role in END_ROLES:
            return f"{name} looks at inputs, which embedding and head do not do"
        try:
            for module in modules:
                chosen.check(f"{module}.weight", self._shape(module))
            if not kind.stacked and len(modules) > 1:
                refuse_cut_scales(self.checkpoint, chosen, [ModuleName.parse(module) for module in modules])
            for target, options in self.targets:
                target.check(self.spec, options, dict.fromkeys(modules, name))
        except InputError as error:
            return str(error)
        if not pinned:
            for target, options in self.targets:
                if any(self._extra_bits(target, options, kind, shape, name) is None for *_, shape in kind.members):
                    return f"target {target.name} would hold {name} as plain numbers"
        return None

    def _extra_bits(
        self, target: Target[Any], options: Any, kind: _Kind, shape: tuple[int, int], name: str
    ) -> float | None:
        return target.extra_bits(self.spec, options, kind.role, kind.stacked, scheme(name).spec.of(shape), shape)

    def _option(self, kind: _Kind, counts: Mapping[tuple[int, int], int], name: str) -> Option:
        """Of so many matrices of each shape."""
        stored, device = 0, 0.0
        plain = 16 - bits_of(scheme(name).code_type)
        for (rows, columns), count in counts.items():
            found = [self._extra_bits(target, each, kind, (rows, columns), name) for target, each in self.targets]
            more = max((plain if each is None else each for each in found), default=0.0)
            mine = self.stored_bytes(self.recipe.layout, scheme(name), (rows, columns))
            stored += count * mine
            device += count * (mine + more * rows * columns / 8)
        return Option(name, stored, round(device))

    def _fewer(self, options: Iterable[Option]) -> tuple[Option, ...]:
        """Without default candidates of 5 to 8 bits in narrower groups than need be: more scales buy less there."""
        kept = dict[str | None, Option]()
        for option in options:
            bits, _, group = (option.scheme or "").partition("-g")
            lavish = not self.recipe.candidates and group and bits in _WIDEST
            kept.setdefault(bits if lavish else option.scheme, option)
        return tuple(kept.values())

    def _no_choice(
        self, name: str, kind: _Kind, modules: Sequence[str], rules: Sequence[Quantize | None]
    ) -> InputError:
        distinct = [rule for rule in rules if rule is not None]
        if len(rules) > 1 and not self._named(rules):
            return InputError(
                f"{name} has one scheme for all of {ModuleName.parse(modules[0]).projection} to "
                f"{ModuleName.parse(modules[-1]).projection}, and the rules of `quantize` that match them leave none; "
                "let one rule match all of them"
            )
        why = next(
            (told for each in self._named(rules) if (told := self._obstacle(kind, modules, each))), "none is named"
        )
        matched = f"the rule `match: {distinct[0].match}`" if distinct else "`candidates`"
        return InputError(f"{name}: {matched} leaves no choice: {why}; add {AS_IS}, or a scheme that fits")

    def _shape(self, module: str) -> tuple[int, int]:
        rows, columns = self.checkpoint.shape(f"{module}.weight")
        return rows, columns

    def _is_pruned(self, module: ModuleName) -> bool:
        return module.expert is not None and self.kept > 0 and module.expert >= self.kept
