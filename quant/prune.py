"""Expert pruning by REAP, router-weighted expert activation (Lasby et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import nn

from llmc.convert.model import DecoderLayer, GroupedTopK, MixtureOfExperts
from llmc.convert.spec import MixtureOfExpertsSpec, RouterSpec
from llmc.errors import InputError


def kept_per_group(router: RouterSpec, keep: float) -> int:
    """How many experts of each router group stay when the fraction `keep` of all does.

    InputError, with the fractions that are possible, when that is no whole number per group, or too few for the
    router: the same number stays in every group, a group is ranked by its two best experts, and `top_k` experts must
    be reachable in `top_k_groups` groups.
    """
    size = router.num_experts // router.num_groups
    fewest = max(2 if router.num_groups > 1 else 1, -(-router.top_k // router.top_k_groups))
    wanted = Fraction(keep).limit_denominator(10**6) * size
    if wanted.denominator == 1 and fewest <= wanted <= size:
        return int(wanted)
    possible = ", ".join(f"{count / size:.6g}" for count in range(fewest, size + 1))
    raise InputError(
        f"prune.keep {keep:g} would leave {float(wanted):g} of the {size} experts in each of {router.num_groups} "
        f"router groups; use one of {possible}"
    )


@dataclass
class ReapScores:
    """Mean over the tokens routed to an expert of (its routing weight x the norm of its output).

    The routing weight is the model's own: scored, normalised and scaled as its router does. Observes forward
    passes of the layer between `attach` and `detach`.
    """

    total: torch.Tensor  # [E] float64
    tokens: torch.Tensor  # [E] int64

    @classmethod
    def attach(cls, moe: MixtureOfExperts) -> tuple[ReapScores, list[torch.utils.hooks.RemovableHandle]]:
        count = len(moe.experts)
        scores = cls(torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.int64))
        routed: dict[str, torch.Tensor] = {}

        def on_route(_: nn.Module, __: object, output: tuple[torch.Tensor, torch.Tensor]) -> None:
            routed["index"], routed["weight"] = output

        def on_expert(number: int, output: torch.Tensor) -> None:
            weight = routed["weight"][routed["index"] == number]  # in the order in which the block calls the expert
            scores.total[number] += (weight * output.norm(dim=-1)).sum(dtype=torch.float64)
            scores.tokens[number] += len(weight)

        handles = [moe.gate.register_forward_hook(on_route)]
        for number, expert in enumerate(moe.experts):
            handles.append(expert.register_forward_hook(lambda _, __, output, number=number: on_expert(number, output)))
        return scores, handles

    def mean(self) -> torch.Tensor:
        """[E] float64; 0 for an expert that no token was routed to."""
        return self.total / self.tokens.clamp_min(1)


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
