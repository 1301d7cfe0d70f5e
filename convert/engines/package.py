"""The two packages that compile engines."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from llmc.errors import MissingPackageError
from llmc.extras import install


@dataclass(frozen=True)
class TensorRTPackage:
    """target: as recipes call it. module: to import. prefix: of the engines' file names.

    targets_gpus: compiles for other GPUs than the one that is there, or without one
    readable:     the program lies in the engine as text
    overhead:     bytes of an engine, at most, that are neither weights nor such text
    """

    target: str
    title: str
    module: str
    prefix: str
    targets_gpus: bool
    readable: bool
    overhead: int

    def require(self) -> None:
        """MissingPackageError if it is not installed."""
        if importlib.util.find_spec(self.module) is None:
            raise MissingPackageError(
                f"target {self.target}: {self.title} is not installed on this machine", install(self.module)
            )


TENSORRT_RTX = TensorRTPackage("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "rtx", True, True, 1 << 20)
TENSORRT = TensorRTPackage("tensorrt", "TensorRT", "tensorrt", "trt", False, False, 256 << 20)
