"""How far a layer of one model is from the same layer of another: hidden states, chosen experts, experts' outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional

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
