"""Target `tensorrt-rtx`: engines compiled on this machine, without a GPU, for the GPUs they will run on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines import build as engines
from llmc.convert.engines import contents
from llmc.convert.spec import ModelSpec
from llmc.convert.targets import TargetResult
from llmc.errors import InputError
from llmc.tensorrt_package import TENSORRT_RTX

# Compute capabilities, times ten, that the compiler knows and that know bfloat16 and int4.
SM = (80, 86, 89, 120, 121)


class Options(engines.EngineOptions):
    """What a recipe may say, besides the options of all engines."""

    sm: list[int] = Field(
        default=[80, 86, 89, 120],
        description="compute capabilities of the GPUs, times ten: 80 is A100, 86 A40 and RTX 30, 89 L4 and L40, 120 "
        "RTX 50",
    )

    @field_validator("sm")
    @classmethod
    def _known(cls, sm: list[int]) -> list[int]:
        unknown = [n for n in sm if n not in SM]
        if unknown or not sm:
            raise InputError(f"target tensorrt-rtx: sm is {unknown or sm}; it compiles for {', '.join(map(str, SM))}")
        return sorted(set(sm))


def check(spec: ModelSpec, options: Options, schemes: Mapping[str, str]) -> None:
    """See `llmc.convert.engines.contents`."""
    contents.check(TENSORRT_RTX.name, spec, options, schemes)


def build(checkpoint: Checkpoint, options: Options, directory: Path, progress: ProgressFunction) -> TargetResult:
    """See `llmc.convert.engines.build`."""
    TENSORRT_RTX.require()
    return engines.build(TENSORRT_RTX, checkpoint, options.sm, options, directory, progress)
