"""What of an artifact's manifest running it depends on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from llmc.contracts.images import ImagesRecord
from llmc.contracts.part import AxisSize, Count, File, FileName, LimitRecord, Number, Part

FORMAT_VERSION = 1


class RunModel(Part):
    max_position_embeddings: AxisSize
    vocab_size: AxisSize
    eos_token_ids: list[Count]
    bos_token_id: Count | None = None
    original_context: AxisSize | None = None
    images: ImagesRecord | None = None


class RunCheck(Part):
    gates: dict[str, Number | LimitRecord] | None = None
    default_gates: bool = True


class RunText(Part):
    text: str
    windows: Count | None = None


class RunTexts(Part):
    read: dict[str, list[RunText]] = Field(default={})


class RunRecipe(Part):
    check: RunCheck | None = None


class RunTokenizer(Part):
    add_bos: bool | None = None


class RunTarget(Part):
    files: dict[str, str]


class RunManifest(Part):
    """What of llmc.json running an artifact depends on: the rest may be of an older or a later llmc, or damaged."""

    format_version: Annotated[int, Field(ge=1)]
    files: dict[FileName, File]
    targets: dict[str, RunTarget]
    model: RunModel
    recipe: RunRecipe
    tokenizer: RunTokenizer | None = None
    reference: File | None = None
    texts: RunTexts | None = None

    @model_validator(mode="after")
    def _lists_what_can_be_run(self) -> RunManifest:
        named = {name for target in self.targets.values() for name in target.files.values()}
        if unlisted := named - self.files.keys():
            raise ValueError(f"files do not list {min(unlisted)!r}")
        return self
