"""What a model loses where it is quantized, measured once and kept beside what is built; no artifact has it."""

from __future__ import annotations

from pydantic import Field

from llmc.contracts.part import Count, Number, Part


class GroupLosses(Part):
    """Modules that share a scheme, and what each scheme would cost."""

    role: str = Field(description="of their weights")
    parameters: Count = Field(description="of all of them")
    methods: list[str] = Field(description="rtn: rounded to nearest; solved: by GPTQ or what derives from it")
    losses: dict[str, Number] = Field(description="scheme → predicted KL divergence, in nats per token")


class SensitivityRecord(Part):
    """A measurement: what decides it, and what it found."""

    key: str = Field(description="hash of everything that decides it but for the schemes")
    model: str = Field(description="id of the source")
    headers: str = Field(description="hash of the source's config.json, and of names and shapes of its tensors")
    text: str = Field(description="the text, in words")
    tokens: Count = Field(description="how many went through the model and back")
    groups: dict[str, GroupLosses] = Field(description="name of a group → its losses")
