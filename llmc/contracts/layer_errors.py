"""How a model's layers compare with the original's, over the check text: activations, routing, experts."""

from __future__ import annotations

from pydantic import Field

from llmc.contracts.part import Count, Number, Part

DIGITS = 6


def rounded(value: float) -> float:
    """The same with as many digits as mean something."""
    return float(f"{value:.{DIGITS}g}")


class RoutingRecord(Part):
    """How a layer chooses experts, each model by what its own layers in front have made of the text. Experts go by
    their numbers in the original, also where some were removed.
    """

    agreement: Number = Field(description="share of the experts chosen by the original that are chosen here, too")
    identical: Number = Field(description="share of tokens for which both choose the same set of experts")
    load_original: list[Number] = Field(
        description="by expert: share of the tokens that go to it in the original; they sum up to experts per token"
    )
    load: list[Number] = Field(description="the same here; 0 for one that was removed")
    removed: list[Count] = Field(default=[], description="experts that were removed")
    expert_errors: list[Number | None] = Field(
        default=[],
        description="by expert: relative distance of its outputs from the original expert's, both given the tokens "
        "that the original sends there; null: removed, or no such token; absent: not measured",
    )


class LayerErrors(Part):
    """One decoder layer."""

    layer: Count = Field(description="its number, from 0")
    error: Number = Field(description="relative distance of the hidden states behind it: |y - x| / |x| over all tokens")
    cosine: Number = Field(description="cosine of the angle between the two hidden states of a token, mean over tokens")
    routing: RoutingRecord | None = Field(default=None, description="of a layer of experts")
