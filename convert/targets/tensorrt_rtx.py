"""Target `tensorrt-rtx`: engines compiled on this machine, without a GPU, for the GPUs they will run on."""

from __future__ import annotations

from pydantic import Field, field_validator

from llmc.convert.engines.build import EngineOptions
from llmc.convert.engines.contents import FP8_SM, widened_bytes
from llmc.convert.engines.target import EngineTarget
from llmc.convert.targets import PlannedWeights
from llmc.errors import InputError
from llmc.tensorrt_package import TENSORRT_RTX

# Compute capabilities, times ten, that the compiler knows and that know bfloat16 and int4.
SM = (80, 86, 89, 120, 121)
# Compiled programs in the engines of one set of GPUs, main and MTP graph; measured: they hardly grow with the model.
_PROGRAMS = 48 << 20


class TensorRTRTXOptions(EngineOptions):
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


class TensorRTRTX(EngineTarget[TensorRTRTXOptions]):
    package, name = TENSORRT_RTX, TENSORRT_RTX.name
    Options = TensorRTRTXOptions

    def gpus(self, options: TensorRTRTXOptions) -> list[int]:
        return options.sm

    def estimate_bytes(self, weights: PlannedWeights, options: TensorRTRTXOptions) -> int:
        """GPUs without FP8 have engines of their own if there is FP8 that others multiply by."""
        _, float8 = widened_bytes(weights, options.plugins, options.batch, FP8_SM)
        generations = {sm < FP8_SM and float8: sm for sm in options.sm}
        programs = options.tensor_parallel * _PROGRAMS
        return sum(self.engine_bytes(weights, options, sm) + programs for sm in generations.values())


TARGET = TensorRTRTX()
