"""What a pass over a model keeps of a finished layer, on the disk of the build; no artifact has it."""

from __future__ import annotations

from pydantic import Field

from llmc.contracts.layer_errors import LayerErrors
from llmc.contracts.part import Count, Number, Part


class ModuleReport(Part):
    """How one module was quantized."""

    scheme: str | None = Field(default=None, description="name of the scheme that it is stored in")
    method: str = Field(description="gptq, gptaq, yaqa, rtn, or `kept as stored`")
    weight_error: float | None = Field(
        default=None, description="relative squared error of the weights, rounded to nearest"
    )
    output_error: float | None = Field(
        default=None,
        description="relative squared error of the outputs on the calibration text (yaqa: weighted by how they matter)",
    )
    nearest_error: float | None = Field(
        default=None, description="that of the same scales with every weight rounded to nearest"
    )
    held_out_error: float | None = Field(
        default=None, description="the error on tokens that the solver did not see, of what it found"
    )
    held_out_nearest_error: float | None = Field(default=None, description="and that of rounding to nearest")
    damping: float | None = Field(default=None, description="share of the Hessian's mean diagonal that was added to it")
    tokens: Count | None = Field(default=None, description="calibration tokens that an expert saw")
    fallback: str | None = Field(
        default=None, description="what was done instead, where tokens or the Hessian did not suffice"
    )

    @property
    def error(self) -> float | None:
        """The error that is known of it."""
        return self.weight_error if self.output_error is None else self.output_error


class RoleCounts(Part):
    """Parameters of one role."""

    expected: Count = Field(default=0, description="parameters that the rules cover")
    quantized: Count = Field(default=0, description="parameters that are quantized")

    def __add__(self, other: RoleCounts) -> RoleCounts:
        return RoleCounts(expected=self.expected + other.expected, quantized=self.quantized + other.quantized)


class PrunedExperts(Part):
    """What pruning did to a layer."""

    survivors: list[Count] = Field(description="original numbers of the experts that stayed")
    tokens: list[Count] = Field(description="calibration tokens routed to each expert before")
    super_experts: list[Count] = Field(description="original numbers of the experts that had to be spared")


class ScratchFile(Part):
    """Size and hash of a file that only the build needs: the hash is against accidents alone, and fast."""

    xxh3: str
    bytes: Count


class LayerRecord(Part):
    """A finished layer. It vouches for the layer's shard, and for what enters the next layer."""

    reports: dict[str, ModuleReport] = Field(description="module, by its name inside the layer → how it was quantized")
    roles: dict[str, RoleCounts] = Field(description="role → parameters")
    schemes: dict[str, str] = Field(description="module, by its whole name → scheme that it is stored in")
    experts: PrunedExperts | None = Field(default=None, description="what pruning did; null: nothing")
    errors: LayerErrors | None = Field(
        default=None, description="the check text's way through it beside the original's; null: MTP"
    )
    shard: dict[str, ScratchFile] = Field(default={}, description="the layer's shard")
    following: dict[str, ScratchFile] = Field(default={}, description="what enters the next layer")


class StepRecord(Part):
    """A finished step of a pass over a model that writes no artifact."""

    files: dict[str, ScratchFile] = Field(default={}, description="what later steps read")
    results: dict[str, ScratchFile] = Field(default={}, description="what is kept of it")


class Sensitivities(Part):
    """What rounding modules costs, of one layer or end of the model."""

    losses: dict[str, dict[str, Number]] = Field(
        description="module, by its whole name → scheme → KL divergence in nats per token"
    )
    importance: list[Number] | None = Field(None, description="mean square of each input of a head")
