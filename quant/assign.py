"""Which module is quantized how: rules of the recipe, resolved against a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import DEFAULT_LAYOUT, Layout
from llmc.convert.layer_modules import layer_modules
from llmc.convert.spec import LinearSpec, Role
from llmc.convert.tensor_names import ModuleName, TensorName
from llmc.errors import InputError
from llmc.patterns import Budget, compile_pattern, shown
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme
from llmc.registry import unknown

Method = Literal["gptq", "gptaq", "yaqa", "rtn"]
METHODS: tuple[str, ...] = get_args(Method)
ASYMMETRIC = ("gptaq", "yaqa")
# Embedding and head, which a rule names by these roles alone: no `re:` finds them.
END_ROLES: tuple[Role, ...] = ("embedding", "lm_head")
# The rest (norms, router) is small, sensitive or both, and stays as it is.
QUANTIZABLE: tuple[Role, ...] = (
    *("experts", "shared_experts", "dense_mlp", "attention", "kv_b_proj", "mtp"),
    *END_ROLES,
)


@dataclass(frozen=True)
class Rule:
    """match: a role, or `re:` and a regular expression that must match a whole module name."""

    match: str
    scheme: str
    method: str = "gptaq"


@dataclass(frozen=True)
class Assignment:
    scheme: Scheme
    method: str
    rule: Rule | None = None

    @property
    def calibrated(self) -> bool:
        """Whether the layer's inputs have to be looked at."""
        return self.method != "rtn" or self.scheme.measures_inputs

    @property
    def asymmetric(self) -> bool:
        """Whether the original's outputs are approximated, for which the original runs beside the quantized model."""
        return self.method in ASYMMETRIC


def check_rules(rules: Iterable[Rule]) -> None:
    """InputError for a rule that no checkpoint could satisfy."""
    for rule in rules:
        scheme(rule.scheme)
        if rule.method not in METHODS:
            raise InputError(unknown("method", rule.method, METHODS))
        check_match(rule.match)


def check_match(match: str) -> None:
    """InputError for what names no role and is no pattern."""
    if match.startswith("re:"):
        compile_pattern(match[3:])
    elif match not in QUANTIZABLE:
        raise InputError(
            f"match {shown(match)} is not a role that can be quantized; use one of {', '.join(QUANTIZABLE)}, or re:…"
        )


def check_layout(rules: Iterable[Rule], layout: Layout, fp8_cache: bool = False) -> None:
    """InputError for a rule whose weights, or for scales of a cache, that the layout has no place for."""
    if fp8_cache and not layout.takes_cache_scales:
        raise InputError(f"layout {layout.name} has no place for the scales of an FP8 cache; use {DEFAULT_LAYOUT}")
    for rule in rules:
        if rule.match in END_ROLES and not layout.takes_ends:
            raise InputError(
                f"layout {layout.name}: what reads it takes no quantized {rule.match}; use layout {DEFAULT_LAYOUT}, or "
                "leave it as it is"
            )
        if not layout.takes(scheme(rule.scheme).spec):
            raise InputError(f"layout {layout.name} has no place for {rule.scheme}; it stores {layout.stores}")


def linear_modules(checkpoint: Checkpoint) -> list[str]:
    """Every linear layer of the decoder and MTP layers, in file order; the router is not one."""
    modules = []
    layers = [layer_modules(checkpoint.spec, index) for index in range(checkpoint.spec.num_all_layers)]
    for name in map(TensorName.parse, checkpoint.names()):
        layer = name.module.layer
        if layer is None or layer >= len(layers) or name.part != "weight":
            continue
        if isinstance(layers[layer].get(name.module.inside), LinearSpec):
            modules.append(str(name.module))
    return modules


def end_modules(checkpoint: Checkpoint) -> dict[str, Role]:
    """Embedding and head by their module names; of a model that has one matrix for both, the embedding."""
    found: dict[str, Role] = {"model.embed_tokens": "embedding"}
    return found if checkpoint.spec.tie_word_embeddings else found | {"lm_head": "lm_head"}


def stale_copies(checkpoint: Checkpoint, assigned: Iterable[str]) -> set[str]:
    """Tensors of MTP layers that repeat an embedding or a head which is to be quantized: they would be another one."""
    quantized, found = {f"{module}.weight" for module in assigned}, set[str]()
    for index in range(checkpoint.spec.num_layers, checkpoint.spec.num_all_layers):
        names = map(str, checkpoint.names_of(index))
        found |= {name for name in names if checkpoint.family.original(name, checkpoint.spec) in quantized}
    return found


def assign(checkpoint: Checkpoint, rules: Sequence[Rule]) -> dict[str, Assignment]:
    """Module → scheme and method, first match wins; InputError for a rule that matches nothing or does not fit."""
    check_rules(rules)
    used: set[Rule] = set()
    result: dict[str, Assignment] = {}
    budget = Budget()
    patterns = {
        rule: compile_pattern(rule.match[3:], budget) if rule.match.startswith("re:") else None for rule in rules
    }
    for module in linear_modules(checkpoint):
        name = f"{module}.weight"
        role = checkpoint.role(name)
        for rule, pattern in patterns.items():
            if rule.match == role or (pattern is not None and pattern.fullmatch(module)):
                found = scheme(rule.scheme)
                rows, columns = checkpoint.shape(name)
                found.check(name, (rows, columns))
                if found.activations is not None and role == "kv_b_proj":
                    plain = found.name.rpartition("-")[0]
                    raise InputError(
                        f"{module}: {found.name} rounds inputs, which this layer does not have when attention works "
                        f"on the latent cache; use {plain} for kv_b_proj"
                    )
                result[module] = Assignment(found, rule.method, rule)
                used.add(rule)
                break
    for module in end_modules(checkpoint):
        if mine := _rules_of_end(checkpoint, module, rules):
            result[module] = _end(checkpoint, module, mine[0])
            used.update(mine)
    if idle := [rule for rule in rules if rule not in used]:
        modules = linear_modules(checkpoint)
        if idle[0].match.startswith("re:"):
            advice = f"it must match whole module names, such as {modules[0]}"
        else:
            roles = {checkpoint.role(f"{module}.weight") for module in (*modules, *end_modules(checkpoint))}
            advice = f"this model has {', '.join(sorted(roles))}"
        raise InputError(f"quantize rule `match: {idle[0].match}` matches nothing that an earlier rule left; {advice}")
    _refuse_unlike_experts(checkpoint, result)
    _refuse_unlike_rows(checkpoint, result)
    return result


def _rules_of_end(checkpoint: Checkpoint, module: str, rules: Sequence[Rule]) -> list[Rule]:
    """The first rule of each role that the matrix has: of two roles, if it is embedding and head in one, either's.
    InputError if two want different schemes.
    """
    tied = checkpoint.spec.tie_word_embeddings
    roles = END_ROLES if tied else (checkpoint.role(f"{module}.weight"),)
    firsts = [next((rule for rule in rules if rule.match == role), None) for role in roles]
    found = sorted((rule for rule in firsts if rule is not None), key=list(rules).index)
    if len({scheme(rule.scheme).name for rule in found}) > 1:
        raise InputError(
            f"quantize: embedding and lm_head of this model are one matrix, {module}.weight, which cannot become both "
            f"{' and '.join(rule.scheme for rule in found)}; one rule is enough"
        )
    return found


def _end(checkpoint: Checkpoint, module: str, rule: Rule) -> Assignment:
    """What becomes of embedding or head. A table whose rows are looked up has no inputs to calibrate it with, and is
    rounded to nearest, whatever the rule's method; a head that is the same matrix is calibrated in the original model.
    Of a head's outputs every one is as near to what the model says as any: it is solved by its inputs alone.
    """
    name, found = f"{module}.weight", scheme(rule.scheme)
    rows, columns = checkpoint.shape(name)
    found.check(name, (rows, columns))
    if found.activations is not None or found.dynamic_groups:
        plain = found.name.rpartition("-")[0]
        what = "rounds inputs" if found.activations is not None else "groups channels by their inputs"
        raise InputError(f"{module}: {found.name} {what}, which embedding and head do not do; use {plain} for it")
    method = "gptaq" if rule.method == "yaqa" else rule.method
    if module != "lm_head":
        method = "gptq" if method != "rtn" and checkpoint.spec.tie_word_embeddings else "rtn"
    return Assignment(found, method, rule)


def _refuse_unlike_experts(checkpoint: Checkpoint, assigned: dict[str, Assignment]) -> None:
    """The same projection of all experts of a layer is stored, and computed with, as one stack."""
    first: dict[tuple[int | None, str, str], tuple[str, str]] = {}
    for module in linear_modules(checkpoint):
        parsed = ModuleName.parse(module)
        if parsed.expert is not None:
            given = assigned.get(module)
            name = given.scheme.name if given else "as it is"
            fellow, expected = first.setdefault((parsed.layer, parsed.block, parsed.projection), (module, name))
            if name != expected:
                raise InputError(
                    f"{module} is to become {name}, and {fellow} {expected}: experts of a layer lie in one stack; let "
                    "one rule of `quantize` match this projection of all of them"
                )


def _refuse_unlike_rows(checkpoint: Checkpoint, assigned: dict[str, Assignment]) -> None:
    """What the family's checkpoints store as one matrix has one scheme, with scales that belong to rows of it."""
    for module in linear_modules(checkpoint) if checkpoint.stored_names.joined else ():
        whole, members = checkpoint.stored_names.joined_module(ModuleName.parse(module))
        if len(members) == 1:
            continue
        given = [assigned.get(str(member)) for member in members]
        names = {one.scheme.name if one else "as it is" for one in given}
        if len(names) > 1:
            stored = checkpoint.stored_names.stored(str(whole))
            raise InputError(
                f"{stored} holds {', '.join(member.projection for member in members)}, which are to become "
                f"{' and '.join(sorted(names))}; let one rule of `quantize` match all of them"
            )
        if given[0] is not None:
            refuse_cut_scales(checkpoint, given[0].scheme, members)


def refuse_cut_scales(checkpoint: Checkpoint, found: Scheme, members: Sequence[ModuleName]) -> None:
    """InputError where a scheme has scales that belong to several of the modules that are stored as one matrix."""
    shapes = [checkpoint.shape(f"{member}.weight") for member in members]
    rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
    block = found.block((rows, columns))
    cuts = {rows for rows, _ in shapes}
    # Zero points are packed along the rows: those of 32 rows fill whole words, but for 3 bits.
    packed = 1 if found.symmetric else 32
    whole_rows = block[0] < rows and not any(cut % max(block[0], packed) for cut in cuts)
    if not whole_rows or found.dynamic_groups or (found.code_type == "int3" and not found.symmetric):
        stored = checkpoint.stored_names.stored(str(checkpoint.stored_names.joined_module(members[0])[0]))
        raise InputError(
            f"{stored}: {found.name} has no scales for {', '.join(member.projection for member in members)} alone, "
            f"of {' and '.join(map(str, sorted(cuts)))} rows, which are stored as one; use a symmetric scheme with "
            "groups or channels"
        )
