"""Target `tensorrt`: engines for the GPU of this machine, which the compiler tries kernels on: H100 and newer, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines import contents
from llmc.convert.engines.build import EngineOptions, build
from llmc.convert.spec import ModelSpec
from llmc.convert.targets import Target, TargetResult
from llmc.runtime.plugins.operation import Gpu
from llmc.tensorrt_package import TENSORRT


class TensorRT(Target[EngineOptions]):
    name = TENSORRT.name
    Options = EngineOptions

    def check(self, spec: ModelSpec, options: EngineOptions, schemes: Mapping[str, str]) -> None:
        """See `llmc.convert.engines.contents`."""
        contents.check(self.name, spec, options, schemes)

    def build(
        self, checkpoint: Checkpoint, options: EngineOptions, directory: Path, progress: ProgressFunction
    ) -> TargetResult:
        """See `llmc.convert.engines.build`. MachineError where there is no GPU."""
        TENSORRT.require()
        return build(TENSORRT, checkpoint, [Gpu.current().sm], options, directory, progress)


TARGET = TensorRT()
