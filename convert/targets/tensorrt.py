"""Target `tensorrt`: engines for the GPU of this machine, which the compiler tries kernels on: H100 and newer, too."""

from __future__ import annotations

from llmc.convert.engines.build import EngineOptions
from llmc.convert.engines.target import EngineTarget
from llmc.runtime.plugins.operation import Gpu
from llmc.tensorrt_package import TENSORRT


class TensorRT(EngineTarget[EngineOptions]):
    package, name = TENSORRT, TENSORRT.name
    Options = EngineOptions

    def gpus(self, options: EngineOptions) -> list[int]:
        """MachineError where there is none."""
        return [Gpu.current().sm]


TARGET = TensorRT()
