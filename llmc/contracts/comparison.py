"""What `llmc compare --json` prints: artifacts side by side."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmc.contracts.part import Count, Number, Part

CONFIDENCE = 95  # percent, of two-sided intervals


class Measured(Part):
    """A measure with its interval; no ends where there are too few windows to tell."""

    value: Number = Field(description="what was measured")
    low: Number | None = Field(default=None, description="lower end of its 95 % interval over windows")
    high: Number | None = Field(default=None, description="upper end")


class ComparedArtifact(Part):
    """One artifact."""

    artifact: str = Field(description="its folder, as it was named")
    name: str = Field(description="name of its recipe")
    source: str = Field(description="what it was made from")
    bytes: Count = Field(description="of its safetensors")
    share: Number = Field(description="of the original's bytes")
    kl_kind: Literal["exact", "sampled", "lower bound"] = Field(description="how its divergence was taken")
    kl_mean: Measured = Field(description="mean divergence from the original, in nats per token")
    ppl_increase: Measured = Field(description="ppl / ppl_original - 1")
    top1: Measured = Field(description="share of positions at which both find the same token most likely")
    verdict: Literal["passed", "missed", "no limits", "not measured"] = Field(description="whether it keeps its limits")


class Difference(Part):
    """Two artifacts over the same windows of text, so that what makes a window hard for both does not count."""

    artifact: str = Field(description="the one")
    against: str = Field(description="the other: differences are the one's less the other's")
    same_source: bool = Field(description="whether both were made from the same files; divergences are from their own")
    windows: Count = Field(description="of the check text that both read")
    kl_mean: Measured = Field(description="difference of mean divergences")
    ppl: Measured = Field(description="the one's perplexity over the other's, less 1")
    top1: Measured = Field(description="difference of shares of agreement")


class Comparison(Part):
    """Artifacts side by side, and each against the first."""

    measured_on: Literal["weights", "backend"] = Field(
        description="weights: the exact divergence of the weights alone, which all have; backend: what gates judge"
    )
    artifacts: list[ComparedArtifact] = Field(description="in the order in which they were named")
    differences: list[Difference] = Field(description="in pairs, where two artifacts read the same text")
    unpaired: dict[str, str] = Field(default={}, description="artifact → why it has no pair with the first")
