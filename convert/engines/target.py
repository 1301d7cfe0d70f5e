"""What the two targets for TensorRT have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines import contents, tensor_parallel
from llmc.convert.engines.build import EngineOptions, build
from llmc.convert.engines.weights import Held, held
from llmc.convert.quantized_weight import QuantSpec, bits_of, held_type
from llmc.convert.spec import ModelSpec
from llmc.convert.targets import PlannedWeights, Target, TargetResult
from llmc.tensorrt_package import TensorRTPackage

_Options = TypeVar("_Options", bound=EngineOptions)


class EngineTarget(Target[_Options]):
    package: ClassVar[TensorRTPackage]  # that compiles

    @abstractmethod
    def gpus(self, options: _Options) -> list[int]:
        """Return the compute capabilities, times ten, of the GPUs that engines are for."""

    def check(self, spec: ModelSpec, options: _Options, schemes: Mapping[str, str]) -> None:
        contents.check(self.name, spec, options, schemes)
        tensor_parallel.check(self.name, spec, options.tensor_parallel, schemes)

    def extra_bits(
        self, spec: ModelSpec, options: _Options, role: str, stacked: bool, kind: QuantSpec, shape: tuple[int, int]
    ) -> float | None:
        """On GPUs that know FP8: others compute in bfloat16 whatever the recipe says. An embedding that is the head,
        too, is there as that wants it.
        """
        found = held(
            kind, shape, contents.known_codes(contents.FP8_SM), options.plugins,
            stacked=stacked, by_heads=role == "kv_b_proj", gathered=stacked and contents.gathers(spec, options.batch),
            looked_up=role == "embedding" and not spec.tie_word_embeddings,
        )  # fmt: skip
        if found == Held.PLAIN:
            return None
        bits, in_engine = bits_of(kind.code_type), bits_of(held_type(kind.code_type))
        twice = role == "embedding" and spec.tie_word_embeddings and found == Held.PLUGIN  # in the order of its kernel
        return in_engine * (1 + twice) - bits

    def build(
        self, checkpoint: Checkpoint, options: _Options, directory: Path, progress: ProgressFunction
    ) -> TargetResult:
        self.package.require()
        tensor_parallel.check(self.name, checkpoint.spec, options.tensor_parallel, {})
        return build(self.package, checkpoint, self.gpus(options), options, directory, progress)

    def estimate_bytes(self, weights: PlannedWeights, options: _Options) -> int:
        """For GPUs that know FP8."""
        return self.engine_bytes(weights, options, contents.FP8_SM)

    def engine_bytes(self, weights: PlannedWeights, options: _Options, sm: int) -> int:
        """Of weights in the engines, main and MTP graph and those of all ranks, for one GPU."""
        more, _ = contents.widened_bytes(weights, options.plugins, options.batch, sm)
        return weights.nbytes + more + tensor_parallel.repeated_bytes(weights.spec, options.tensor_parallel)
