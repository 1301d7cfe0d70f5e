"""Records of llmc.json that tell the artifact's own faults from what compression costs."""

from __future__ import annotations

from pydantic import Field

from llmc.contracts.part import Count, Number, Part


class RuntimeRecord(Part):
    """The quantized weights as torch computes with them against the same weights as the backend does."""

    tokens: Count = Field(description="predictions that were compared")
    kl_mean: Number = Field(description="divergence of the backend's answers from torch's, mean, in nats per token")
    kl_mean_stderr: Number = Field(description="its standard error")
    kl_median: Number = Field(description="its median")
    kl_p99: Number = Field(description="its 99th percentile")
    kl_max: Number = Field(description="its maximum")
    top1: Number = Field(description="share of positions at which both find the same token most likely")
    largest: Number = Field(description="largest difference of a likely token's log-probabilities, in nats")


class HistogramRecord(Part):
    """How many tokens diverge by how much."""

    edges: list[Number] = Field(description="ends of the bins, in nats, rising")
    counts: list[Count] = Field(
        description="tokens in each: the first is below the first edge, the last at the last edge or above"
    )


class WindowsRecord(Part):
    """Means over each window of the check text, from which artifacts that read the same text are compared in pairs."""

    kl: list[Number] = Field(description="divergence, in nats per token")
    surprise_original: list[Number] = Field(description="nats per true token, by the original: -ln p")
    surprise: list[Number] = Field(description="by the artifact")
    top1: list[Number] = Field(description="share of positions at which both find the same token most likely")
