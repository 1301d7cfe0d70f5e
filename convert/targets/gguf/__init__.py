"""Target `gguf`: a file for llama.cpp and what is built on it, with tokenizer and chat template.

Codes of ours that a type of llama.cpp's has a place for stay what they are, as error compensation has chosen them
(`blocks`); other weights are rounded to the nearest type, and the file's notes say how far that is from what they were.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.gguf.architectures import obstacle
from llmc.convert.quantized_weight import QuantSpec, bits_of, is_integer
from llmc.convert.spec import ModelSpec
from llmc.convert.targets import PlannedWeights, Target, TargetResult
from llmc.errors import InputError, MissingPackageError
from llmc.extras import install

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "gguf/model.gguf"
_SCALE_BITS = 0.5  # what a scale of float16 takes per weight


class GgufOptions(BaseModel, extra="forbid"):
    """What a recipe may say."""

    other: Literal["q8_0", "f16", "bf16", "f32"] = Field(
        default="q8_0",
        description="type of quantized weights that llama.cpp has no codes for, as FP8 and act-order; the loss is said",
    )
    floats: Literal["as stored", "f16", "bf16", "f32"] = Field(
        default="as stored", description="type of matrices that the recipe leaves in floats"
    )
    mtp: bool = Field(
        default=False,
        description="write layers for multi-token prediction, too (llama.cpp's nextn): only its newest versions load "
        "such a file",
    )
    pre_tokenizer: str | None = Field(
        default=None,
        description="llama.cpp's name (`tokenizer.ggml.pre`) of how texts are divided, where llmc does not find it",
        pattern=r"^[a-z0-9_.-]+$",
    )


class Gguf(Target[GgufOptions]):
    name = "gguf"
    takes_negative_scales = True
    Options = GgufOptions

    def check(self, spec: ModelSpec, options: GgufOptions, schemes: Mapping[str, str]) -> None:
        """Refuse families that are not written; the rest is in config.json, and `build` has it."""
        if why := obstacle(spec, {}):
            raise InputError(f"target gguf: {why}; take it out of `targets`")

    def build(
        self, checkpoint: Checkpoint, options: GgufOptions, directory: Path, progress: ProgressFunction
    ) -> TargetResult:
        """Write gguf/model.gguf."""
        try:
            from llmc.convert.targets.gguf.write import write
        except ModuleNotFoundError as error:
            if error.name != "gguf":
                raise
            raise MissingPackageError("gguf is not installed", install("gguf")) from error
        path = directory / FILE
        written = write(checkpoint, options, path, progress)
        details: dict[str, Any] = {"types": written.types, "bits_per_weight": written.bits_per_weight}
        details |= {"exact": written.exact, "rounded": written.rounded}
        return TargetResult(
            name=self.name,
            files={"main": FILE},
            weight_bytes=written.weight_bytes,
            file_bytes=path.stat().st_size,
            notes=written.notes,
            details=details,
        )

    def estimate_bytes(self, weights: PlannedWeights, options: GgufOptions) -> int:
        """Integers in the next larger type, everything else as it is."""
        more = sum(
            count * _more_bits(spec) / 8 for found in weights.parameters.values() for spec, count in found.items()
        )
        return weights.nbytes + int(more)


def _more_bits(spec: QuantSpec) -> float:
    """How many bits a weight takes more than in the checkpoint, scales left out there."""
    bits = bits_of(spec.code_type)
    if not is_integer(spec.code_type):
        return 0.0 if bits == 4 else _SCALE_BITS
    held = 4 if bits <= 4 else 5 if bits == 5 else 8
    return held - bits + _SCALE_BITS + (_SCALE_BITS if spec.zero_points else 0)


TARGET = Gguf()
