"""A budget, and the least predicted loss within it: from what modules lose to rules that say which gets what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmc.budget_recipe import AS_IS, KEYS, read_fit, shown_budget
from llmc.candidates import candidate_groups
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.spec import MixtureOfExpertsSpec, ModelSpec, StateSpec, state_bytes
from llmc.convert.tensor_names import TensorName
from llmc.errors import InputError
from llmc.explicit_rules import explicit_rules
from llmc.planning import Point, cache_bytes_per_token, experts_of, is_pruned, pruned_spec, stored_bytes, targets_of
from llmc.progress import size
from llmc.quant.allocation import Allocation, Choice, allocate, curve, least_bytes
from llmc.quant.assign import Rule
from llmc.recipe import Quantize, Recipe
from llmc.scheme_options import Group, Option, SchemeOptions
from llmc.sizes import tensor_sizes

# Group → scheme → nats per token that its modules lose together.
Losses = Mapping[str, Mapping[str, float]]
# A safetensors file names every tensor, with dtype, shape and place: characters beside the name, and tensors that a
# quantized weight is stored as.
_HEADER, _PARTS = 110, 3
MTP = "mtp"  # role
_CUDA_CONTEXT = 512 << 20  # what driver and runtime keep for themselves
# Layers for multi-token prediction lose drafts, not what the model says: at most sqrt(nats / 2) of them. What they lose
# is weighed so against what the others do, and is no part of a prediction.
MTP_WEIGHT = 0.1
_STEP_TOKENS = 512  # of a prompt that go through a layer at once


@dataclass(frozen=True)
class Solution:
    """What becomes of every group.

    Attributes:
        allocation: Group → its choice.
        recipe: With rules that say so, and no budget.
        point: Where it lies on the curve.
        roles: Role → scheme, or as-is → parameters.
        role_bits: Role → mean bits of these.
    """

    allocation: Allocation
    recipe: Recipe
    point: Point
    roles: dict[str, dict[str, int]]
    role_bits: dict[str, float]


@dataclass(frozen=True)
class BudgetProblem:
    """What is to be decided, and how much there is for it.

    Attributes:
        groups: What the budget decides about.
        fixed: Bytes of everything else on disk, headers included.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    groups: list[Group]
    fixed: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, recipe: Recipe) -> BudgetProblem:
        """Read headers alone.

        Raises:
            InputError: A rule leaves no choice, or the budget is less than anything takes.
        """
        experts = experts_of(checkpoint, recipe)
        kept = experts[1] if experts else 0
        spec = pruned_spec(checkpoint.spec, kept) if experts else checkpoint.spec
        options = SchemeOptions(checkpoint, recipe, spec, kept, stored_bytes, targets_of(recipe))
        groups = candidate_groups(options)
        groups = [group for group in groups if group.can_be_quantized]
        if not groups:
            raise InputError(f"{_shown(recipe)}: no module of this model can have any of the candidates")
        problem = cls(
            checkpoint, recipe, groups, _fixed(checkpoint, groups, kept / experts[0] if experts else 1.0, kept)
        )
        problem.require()
        return problem

    @property
    def key(self) -> str:
        """The recipe's: size, bits or fit; bits where it has none, as for a curve."""
        return self.recipe.budget[0] if self.recipe.budget else "bits"

    @cached_property
    def parameters(self) -> int:
        """Those that may be quantized."""
        return sum(group.parameters for group in self.groups)

    @property
    def schemes(self) -> dict[str, list[str]]:
        """Group → schemes that its modules may get."""
        return {
            group.name: [option.scheme for option in group.options if option.scheme is not None]
            for group in self.groups
        }

    @cached_property
    def beside(self) -> int:
        """Bytes that `fit` leaves no weights: cache and workspace."""
        if self.recipe.fit is None:
            return 0
        spec, tokens = self.checkpoint.spec, read_fit(self.recipe.fit).tokens
        cache, _ = cache_bytes_per_token(spec, spec.fp8_cache or self.recipe.kv_cache == "fp8")
        states = sum(state_bytes(each) for each in spec.attentions if isinstance(each, StateSpec))
        return cache * tokens + states + workspace_bytes(spec)

    @property
    def budget(self) -> int:
        """Bytes for the groups."""
        if self.recipe.size is not None:
            return self.recipe.size - self.fixed
        if self.recipe.fit is not None:
            return read_fit(self.recipe.fit).bytes - self.beside - self.fixed
        return int((self.recipe.bits or 32) * self.parameters / 8)

    def choices(self, losses: Losses) -> dict[str, list[Choice]]:
        """By group; what stays as it is loses nothing."""
        on_device = self.key == "fit"
        return {
            group.name: [
                Choice(
                    option.scheme,
                    option.device_bytes if on_device else option.bytes,
                    0.0 if option.scheme is None else _weight(group) * losses[group.name][option.scheme],
                )
                for option in group.options
            ]
            for group in self.groups
        }

    @property
    def guess(self) -> Losses:
        """What groups would lose if all parameters mattered alike and a bit more were a quarter of it: good enough for
        what a build takes, before anything is measured.
        """
        return {
            group.name: {
                option.scheme: group.parameters * 4.0 ** (-8 * option.bytes / group.parameters)
                for option in group.options
                if option.scheme is not None
            }
            for group in self.groups
        }

    def require(self) -> None:
        """InputError if nothing fits, or everything does."""
        choices = self.choices(self.guess)
        least = least_bytes(choices)
        whole = sum(max(choice.bytes for choice in each) for each in choices.values())
        if least > self.budget:
            raise InputError(f"{_shown(self.recipe)}: the least that these candidates reach is {self._said(least)}")
        free = all(any(choice.scheme is None for choice in each) for each in choices.values())
        if self.recipe.budget and free and whole <= self.budget:
            raise InputError(
                f"{_shown(self.recipe)}: the model as it is takes {self._said(whole)}; nothing would be quantized"
            )

    def _said(self, least: int) -> str:
        """Bytes of the groups in the terms of the recipe's budget."""
        if self.key == "bits":
            return f"{_rounded_up(8 * least / self.parameters)} bits"
        if self.key == "size":
            return size(least + self.fixed)
        weights = least + self.fixed
        return f"{size(weights + self.beside)} ({size(weights)} of weights, {size(self.beside)} of cache and workspace)"

    def solve(self, losses: Losses) -> Solution:
        """Return the allocation of least loss, and the recipe with rules that say so in place of a budget."""
        found = allocate(self.choices(losses), self.budget)
        return Solution(found, self._explicit(found), self.point(found), *self._by_role(found))

    def curve(self, losses: Losses, points: int = 16) -> list[Point]:
        """Return allocations from the smallest to the one that loses nothing, evenly spaced in bits."""
        found = [self.point(each) for each in curve(self.choices(losses))]
        low, high = found[0].bits, found[-1].bits
        wanted = [low + (high - low) * (number / (points - 1)) ** 2 for number in range(points)]
        nearest = [min(range(len(found)), key=lambda index: abs(found[index].bits - each)) for each in wanted]
        return [found[index] for index in sorted(set(nearest))]

    def point(self, found: Allocation) -> Point:
        """Return where an allocation lies on the curve."""
        stored = sum(self._option(group, found).bytes for group in self.groups)
        kl = math.fsum(found.chosen[group.name].loss for group in self.groups if group.role != MTP)
        return Point(stored + self.fixed, 8 * stored / self.parameters, kl)

    def _by_role(self, found: Allocation) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
        counts: dict[str, dict[str, int]] = {}
        stored: dict[str, int] = {}
        for group in self.groups:
            option = self._option(group, found)
            name, mine = option.scheme or AS_IS, counts.setdefault(group.role, {})
            mine[name] = mine.get(name, 0) + group.parameters
            stored[group.role] = stored.get(group.role, 0) + option.bytes
        return counts, {role: 8 * count / sum(counts[role].values()) for role, count in stored.items()}

    @staticmethod
    def _option(group: Group, found: Allocation) -> Option:
        return next(each for each in group.options if each.scheme == found.chosen[group.name].scheme)

    def _explicit(self, found: Allocation) -> Recipe:
        chosen = {
            module: (scheme, group.methods[module])
            for group in self.groups
            if (scheme := found.chosen[group.name].scheme) is not None
            for module in group.modules
        }
        return with_rules(self.recipe, explicit_rules(self.checkpoint, chosen))


def with_rules(recipe: Recipe, rules: Sequence[Rule]) -> Recipe:
    """Return a recipe with rules in place of its budget."""
    # model_validate would compile every pattern once more.
    quantize = [Quantize.model_construct(match=r.match, scheme=r.scheme, least=None, method=r.method) for r in rules]
    return recipe.model_copy(update={"quantize": quantize, "candidates": None, **dict.fromkeys(KEYS)})


def _weight(group: Group) -> float:
    return MTP_WEIGHT if group.role == MTP else 1.0


def workspace_bytes(spec: ModelSpec) -> int:
    """About what a program for one GPU takes beside weights and cache: the driver's context, activations of a step in
    bfloat16, and two rows of logits.
    """
    widths = [
        max(mlp.intermediate_size, mlp.shared_intermediate_size) + mlp.router.top_k * mlp.intermediate_size
        if isinstance(mlp, MixtureOfExpertsSpec)
        else mlp.intermediate_size
        for mlp in spec.mlps
    ]
    mixed = max(attention.output_size for attention in spec.attentions)
    step = 2 * _STEP_TOKENS * (3 * max(widths) + 3 * mixed + 4 * spec.hidden_size)
    return _CUDA_CONTEXT + step + 2 * 4 * spec.vocab_size


def _fixed(checkpoint: Checkpoint, groups: Sequence[Group], share: float, kept: int) -> int:
    """Bytes of what no group has, and of all headers."""
    decided = {module for group in groups for module in group.modules}
    count = 0
    for name, before in tensor_sizes(checkpoint).items():
        tensor = TensorName.parse(name)
        if is_pruned(tensor.module, kept):
            continue
        mine = str(tensor.module) in decided and tensor.part == "weight"
        count += (_HEADER + len(name)) * (_PARTS if mine else 1)
        if not mine:
            count += round(before.bytes * share) if tensor.module.is_router else before.bytes
    return count


def _rounded_up(bits: float) -> str:
    return f"{-(-bits * 1000 // 1) / 1000:.4g}"


def _shown(recipe: Recipe) -> str:
    return shown_budget(*recipe.budget) if recipe.budget else "candidates"
