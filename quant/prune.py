"""Expert pruning: which experts of a layer stay, and what the layer is without the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeVar

import torch
from torch import nn

from llmc.convert.model import DecoderLayer, GroupedTopK, MixtureOfExperts
from llmc.convert.spec import MixtureOfExpertsSpec, RouterSpec
from llmc.convert.tensor_names import ModuleName
from llmc.errors import InputError

SUPER_EXPERT = 10.0  # times the median of the largest outputs of a layer's experts
Criterion = Literal["reap", "ean", "frequency"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pruning:
    """keep: the fraction of experts that stays; method: what they are judged by, see `ExpertScores.by`."""

    keep: float
    method: Criterion = "reap"


def kept_per_group(router: RouterSpec, keep: float) -> int:
    """How many experts of each router group stay when the fraction `keep` of all does.

    InputError, with the fractions that are possible, when that is no whole number per group, or too few for the

    Args:
        router: the same number stays in every group, a group is ranked by its two best experts, and `top_k` experts
            must

    be reachable in `top_k_groups` groups.
    """
    size, possible = router.num_experts // router.num_groups, fractions(router)
    wanted = Fraction(keep).limit_denominator(10**6)
    if wanted in possible:
        return int(wanted * size)
    raise InputError(
        f"prune.keep {keep:g} would leave {float(wanted * size):g} of the {size} experts in each of "
        f"{router.num_groups} router groups; use one of {', '.join(f'{float(each):.6g}' for each in possible)}"
    )


def fractions(router: RouterSpec) -> list[Fraction]:
    """The fractions of its experts that a router can do with, the least first."""
    size = router.num_experts // router.num_groups
    fewest = max(2 if router.num_groups > 1 else 1, -(-router.top_k // router.top_k_groups))
    return [Fraction(count, size) for count in range(fewest, size + 1)]


@dataclass
class ExpertScores:
    """What the tokens routed to each expert [E] say of it; sums in float64.

    The routing weight is the model's own: scored, normalized and scaled as its router does.
    """

    tokens: torch.Tensor  # int64
    weight: torch.Tensor  # sum of routing weights
    norm: torch.Tensor  # sum of the norms of its outputs
    weighted_norm: torch.Tensor  # sum of (routing weight x norm)
    largest: torch.Tensor  # largest magnitude in its outputs

    @classmethod
    def empty(cls, experts: int) -> ExpertScores:
        sums = [torch.zeros(experts, dtype=torch.float64) for _ in range(4)]
        return cls(torch.zeros(experts, dtype=torch.int64), *sums)

    def add(self, expert: int, output: torch.Tensor, weight: torch.Tensor) -> None:
        """Output [n, H] of an expert, and its routing weight [n], for some of its tokens."""
        norm = output.norm(dim=-1)
        self.tokens[expert] += len(weight)
        self.weight[expert] += weight.sum(dtype=torch.float64).item()
        self.norm[expert] += norm.sum(dtype=torch.float64).item()
        self.weighted_norm[expert] += (weight * norm).sum(dtype=torch.float64).item()
        if len(weight):
            self.largest[expert] = max(self.largest[expert].item(), output.abs().max().item())

    def protected(self) -> list[int]:
        """Experts whose largest output stands out from the layer's others: few, but a model without them falls apart
        (super experts, Su et al. 2025).
        """
        outlier = self.largest > SUPER_EXPERT * self.largest.median()
        return outlier.nonzero().flatten().tolist()

    def by(self, method: str) -> torch.Tensor:
        """[E] float64, the higher the better; 0 for an expert that no token was routed to.

        reap:      mean of (routing weight x output norm) (Lasby et al. 2025)
        ean:       sum of the output norms, expert activation norm (Jaiswal et al. 2025)
        frequency: number of tokens
        """
        if method == "reap":
            return self.weighted_norm / self.tokens.clamp_min(1)
        return {"ean": self.norm, "frequency": self.tokens.double()}[method]


def survivors(scores: torch.Tensor, num_groups: int, per_group: int) -> list[int]:
    """The `per_group` best experts of every group, in their original order; ties go to the lower number."""
    size = len(scores) // num_groups
    kept = []
    for group in scores.view(num_groups, size).argsort(dim=-1, descending=True, stable=True):
        kept.append(sorted(group[:per_group].tolist()))
    return [group * size + expert for group, experts in enumerate(kept) for expert in experts]


def prune(layer: DecoderLayer, kept: list[int]) -> None:
    """Removes all other experts from the layer and its router, in place; the survivors are renumbered."""
    moe = layer.mlp
    assert isinstance(moe, MixtureOfExperts)
    moe.experts = nn.ModuleList(moe.experts[number] for number in kept)
    gate: GroupedTopK = moe.gate
    gate.spec = replace(gate.spec, num_experts=len(kept))
    for name, parameter in gate.named_parameters():
        setattr(gate, name, nn.Parameter(parameter[kept], requires_grad=False))


def routers(mlps: tuple[object, ...]) -> list[RouterSpec]:
    """The routers of a model's layers."""
    return [mlp.router for mlp in mlps if isinstance(mlp, MixtureOfExpertsSpec)]


def original_name(name: str, kept: list[int] | None) -> str:
    """A module's name in the checkpoint, for its name after pruning."""
    parsed = ModuleName.parse(name)
    if kept is None or parsed.expert is None:
        return name
    return str(replace(parsed, expert=kept[parsed.expert]))


def renumber(assigned: dict[str, _T], kept: list[int]) -> dict[str, _T]:
    """The assignments of what survives, under the names it has after pruning."""
    numbers = {old: new for new, old in enumerate(kept)}
    result = {}
    for name, assignment in assigned.items():
        parsed = ModuleName.parse(name)
        if parsed.expert is None:
            result[name] = assignment
        elif parsed.expert in numbers:
            result[str(replace(parsed, expert=numbers[parsed.expert]))] = assignment
    return result
