"""How far a layer of one model is from the same layer of another: hidden states, chosen experts, experts' outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from llmc.contracts.layer_errors import RoutingRecord, rounded
from llmc.convert.model import DecoderLayer, MixtureOfExperts
from llmc.quant.activation_file import ActivationFile


def distance(original: ActivationFile, other: ActivationFile) -> tuple[float, float]:
    """Relative distance of the second model's hidden states from the first's, over all tokens, and the mean of the
    cosines between those of each token.
    """
    apart = whole = cosines = 0.0
    for rows in original.micro_batches():
        x, y = original.read(rows), other.read(rows)
        apart += (y - x).double().square().sum().item()
        whole += x.double().square().sum().item()
        cosines += functional.cosine_similarity(y, x, dim=-1).double().sum().item()
    return (apart / whole) ** 0.5 if whole else 0.0, cosines / original.tokens


@contextmanager
def chosen_experts(layer: DecoderLayer) -> Iterator[list[torch.Tensor]]:
    """What the layer's router chooses from now on, in the order of the text: int16 [n, K] each time that it is asked;
    nothing where the layer has no experts.
    """
    found: list[torch.Tensor] = []
    if not isinstance(layer.mlp, MixtureOfExperts):
        yield found
        return
    hook = layer.mlp.gate.register_forward_hook(lambda _, __, chosen: found.append(chosen[0].short().cpu()))
    try:
        yield found
    finally:
        hook.remove()


def compare_routing(
    original: Sequence[torch.Tensor], other: Sequence[torch.Tensor], experts: int, survivors: Sequence[int] | None
) -> RoutingRecord | None:
    """Compare what two routers chose for the same tokens; None where nothing was chosen.

    Args:
        original: Of the first model, as `chosen_experts` has it.
        other: Of the second, in the same pieces.
        experts: How many the original has.
        survivors: The original's numbers of the second model's experts; None: they are the same.
    """
    if not original:
        return None
    numbers = torch.arange(experts) if survivors is None else torch.tensor(survivors)
    tokens = shared = identical = 0
    loads = torch.zeros(2, experts, dtype=torch.int64)
    for before, after in zip(original, other, strict=True):
        mine, its = before.long(), numbers[after.long()]
        common = (mine[:, :, None] == its[:, None]).any(-1).sum(-1)
        tokens, shared = tokens + len(mine), shared + int(common.sum())
        identical += int((common == max(mine.shape[1], its.shape[1])).sum())
        for load, index in zip(loads, (mine, its), strict=True):
            load += index.flatten().bincount(minlength=experts)
    shares = [[rounded(each / tokens) for each in load] for load in loads.tolist()]
    return RoutingRecord(
        agreement=rounded(shared / (tokens * original[0].shape[1])),
        identical=rounded(identical / tokens),
        load_original=shares[0],
        load=shares[1],
        removed=sorted({*range(experts)} - {*numbers.tolist()}),
    )


def matched_experts(original: torch.Tensor, other: torch.Tensor) -> list[int] | None:
    """The original's number of each expert of another router, both by their rows [E, H], of which a row that was kept
    is the nearest, however it was rounded; None where two would be the same one.
    """
    if original.shape == other.shape and torch.equal(original.float(), other.float()):
        return list(range(len(original)))
    nearest: list[int] = torch.cdist(other.float(), original.float()).argmin(1).tolist()
    return nearest if len({*nearest}) == len(nearest) else None


class ExpertErrors:
    """While entered: how far the outputs of a layer's experts are from another layer's, given the same tokens, those
    that the first layer's router sends to each.
    """

    def __init__(self, original: MixtureOfExperts, other: MixtureOfExperts) -> None:
        self.apart, self.whole = (torch.zeros(len(original.experts), dtype=torch.float64) for _ in range(2))
        numbers = matched_experts(original.gate.weight, other.gate.weight)
        counterparts = enumerate(numbers or ())
        self._pairs = [(number, original.experts[number], other.experts[its]) for its, number in counterparts]
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> ExpertErrors:
        self._hooks = [
            mine.register_forward_hook(partial(self._note, number, its)) for number, mine, its in self._pairs
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(
        self, number: int, other: nn.Module, _: nn.Module, given: tuple[torch.Tensor], made: torch.Tensor
    ) -> None:
        self.apart[number] += (other(given[0]) - made).double().square().sum().cpu()
        self.whole[number] += made.double().square().sum().cpu()

    def relative(self) -> list[float | None]:
        """By expert; None for one that has no counterpart, or no token."""
        pairs = zip(self.apart.tolist(), self.whole.tolist(), strict=True)
        return [rounded((apart / whole) ** 0.5) if whole else None for apart, whole in pairs]
