"""Records of the long-context check, `llmc check --long`."""

from __future__ import annotations

from pydantic import Field

from llmc.contracts.manifest import StretchRecord
from llmc.contracts.part import Count, Number, Part


class RecallRecord(Part):
    """Windows of one length, each with a sentence that names a number, which is asked for at the end. Log-likelihoods
    are those of the right answer, in nats; guessing its five digits comes to -11.5. Standard errors are over windows.
    """

    length: Count = Field(description="tokens of a window")
    windows: Count = Field(description="how many there are")
    logprob: Number = Field(description="log-likelihood by the artifact, mean")
    logprob_stderr: Number = Field(description="its standard error")
    recalled: Number = Field(description="share of windows whose answer it finds most likely, token by token")
    by_depth: list[Number] = Field(
        description="mean log-likelihood where the sentence stands 0, 25, 50, 75 and 100 % of the way"
    )
    logprob_original: Number | None = Field(default=None, description="by the original, as the next two")
    recalled_original: Number | None = Field(default=None, description="share that it finds most likely")
    by_depth_original: list[Number] | None = Field(default=None, description="mean by depth")
    change_stderr: Number | None = Field(
        default=None, description="standard error of logprob - logprob_original, window by window (paired)"
    )
    kl_mean: Number | None = Field(default=None, description="divergence over the windows, mean, in nats per token")
    kl_mean_stderr: Number | None = Field(default=None, description="its standard error")
    kl_by_position: list[StretchRecord] | None = Field(default=None, description="the divergence along them")


class LongContextRecord(Part):
    """What `llmc check --long` prints without an original."""

    artifact: str = Field(description="as it was named")
    backend: str = Field(description="what computed it")
    context: Count = Field(description="tokens that it has room for")
    lengths: list[RecallRecord] = Field(description="shortest first")
