"""What `llmc check --against` prints: an artifact, or a checkpoint by any tool, beside the model it was made from."""

from __future__ import annotations

from pydantic import Field

from llmc.contracts.layer_errors import LayerErrors
from llmc.contracts.long_context import RecallRecord
from llmc.contracts.manifest import Checks, TextRead
from llmc.contracts.part import Count, Part, Sha256


class AgainstRecord(Part):
    """Both models in torch, in float32, their logits through a softmax in float64."""

    artifact: str = Field(description="what was compared, as it was named")
    original: str = Field(description="what it was compared with, as it was named")
    digest: Sha256 | None = Field(
        default=None,
        description="hash of what the artifact is made of, as in audit.json; absent: no artifact of llmc's",
    )
    layout: str = Field(description="how its weights are stored, as its config.json says; empty: as they were trained")
    bytes: Count = Field(description="of its safetensors")
    bytes_original: Count = Field(description="of the original's")
    windows: Count = Field(description="of the check text")
    length: Count = Field(description="tokens of each")
    text: list[TextRead] = Field(
        default=[], description="what was read; empty: the text that the artifact has on record"
    )
    checks: Checks = Field(description="the comparison")
    layers: list[LayerErrors] = Field(description="decoder layer by decoder layer")
    long: list[RecallRecord] = Field(default=[], description="what is found in windows of each length, where asked")
    notes: list[str] = Field(default=[], description="what may make the numbers mean something else")
