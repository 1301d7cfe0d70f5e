"""Records of llmc.json that tell the artifact's own faults from what compression costs."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, model_validator

from llmc.contracts.part import Count, Number, Part, Sha256


class ProbeRecord(Part):
    """What the graphs of target onnxruntime made of arbitrary tokens when they were built; activations in float32."""

    tokens: list[list[Count]] = Field(description="rows of tokens; the last of each is only read by the MTP layer")
    sums: dict[str, str] = Field(
        description="graph (main, mtp) → four sums of each position's logits, less their mean, with arbitrary signs, "
        "over the root of the vocabulary's size: little-endian float32 [rows, positions, 4], in base 64"
    )
    spread: dict[str, Number] = Field(description="graph → root mean square of the logits, less their mean")

    @model_validator(mode="after")
    def _holds_together(self) -> ProbeRecord:
        lengths = {len(row) for row in self.tokens}
        if len(lengths) != 1 or min(lengths) < 2:
            raise ValueError("rows of tokens must be equally long, and of two tokens at least")
        return self


class BuiltRecord(Part):
    """What the artifact did when it was built: `llmc check` sees whether it still does."""

    digests: dict[str, Sha256] = Field(
        default={},
        description="of what the original's tokenizer makes of fixed texts: vocabulary, all tokens as it writes them; "
        "encoding, the tokens of a text in many scripts, and their text; chat_template, if there is one, four "
        "conversations as it renders them",
    )
    probe: ProbeRecord | None = Field(
        default=None, description="what the graphs made of arbitrary tokens; absent: there is no target onnxruntime"
    )
    mtp_accepted: Count | None = Field(default=None, description="MTP drafts that the model agreed to")
    mtp_drafted: Count | None = Field(default=None, description="of so many")

    @model_validator(mode="after")
    def _holds_together(self) -> BuiltRecord:
        if (self.mtp_accepted or 0) > (self.mtp_drafted or 0):
            raise ValueError("more MTP drafts were accepted than drafted")
        return self


class AsBuiltRecord(Part):
    """What is still as the build recorded it; absent keys: not recorded, or not to be told by this backend."""

    graph: Number | None = Field(
        default=None,
        description="how far the logits of arbitrary tokens are from what they were, at 99 % of the positions at most: "
        "root mean square over the vocabulary, over their spread; activations in float32",
    )
    mtp_graph: Number | None = Field(default=None, description="the same of the MTP layer's graph")
    tokenizer: bool | None = Field(default=None, description="whether it makes the same of fixed texts")
    chat_template: bool | None = Field(default=None, description="whether it renders the same conversations")
    mtp_acceptance_least: Number | None = Field(
        default=None, description="the least share of accepted drafts that chance explains"
    )


class RuntimeRecord(Part):
    """The quantized weights as torch computes with them against the same weights as the backend does."""

    tokens: Count = Field(description="predictions that were compared")
    kl_mean: Number = Field(description="divergence of the backend's answers from torch's, mean, in nats per token")
    kl_mean_stderr: Number = Field(description="its standard error")
    kl_median: Number = Field(description="its median")
    kl_median_of_steps: Number = Field(
        description="its median where tokens are read one by one, the last eight of each window"
    )
    kl_p99: Number = Field(description="its 99th percentile")
    kl_max: Number = Field(description="its maximum")
    weights_kl_mean: Number = Field(
        description="beside it, at the same tokens: divergence of torch's answers with the quantized weights from the "
        "original's, mean; what the quantization costs"
    )
    weights_kl_median: Number = Field(description="its median")
    top1: Number = Field(description="share of positions at which both find the same token most likely")
    largest: Number = Field(description="largest difference of a likely token's log-probabilities, in nats")


class HistogramRecord(Part):
    """How many tokens diverge by how much."""

    edges: list[Number] = Field(description="ends of the bins, in nats, rising")
    counts: list[Count] = Field(
        description="tokens in each: the first is below the first edge, the last at the last edge or above"
    )

    @model_validator(mode="after")
    def _holds_together(self) -> HistogramRecord:
        rising = all(0 < low < high for low, high in pairwise(self.edges))
        if not self.edges or not rising or len(self.counts) != len(self.edges) + 1 or not any(self.counts):
            raise ValueError("edges must be positive and rise, with one count more than edges, not all of them 0")
        return self


class WindowsRecord(Part):
    """Means over each window of the check text, from which artifacts that read the same text are compared in pairs."""

    kl: list[Number] = Field(description="divergence, in nats per token")
    surprise_original: list[Number] = Field(description="nats per true token, by the original: -ln p")
    surprise: list[Number] = Field(description="by the artifact")
    top1: list[Number] = Field(description="share of positions at which both find the same token most likely")

    @model_validator(mode="after")
    def _holds_together(self) -> WindowsRecord:
        if not self.kl or {len(self.surprise_original), len(self.surprise), len(self.top1)} != {len(self.kl)}:
            raise ValueError("there must be as many of each, and at least one")
        return self
