"""The two packages whose engines llmc compiles and runs: a leaf module, since both rooms have to know them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from llmc.errors import MissingPackageError
from llmc.extras import DISTRIBUTIONS, install


@dataclass(frozen=True)
class TensorRTPackage:
    """What differs between TensorRT and TensorRT-RTX.

    Attributes:
        name: Of target and backend.
        title: For people.
        module: To import.
        prefix: Of the engines' file names.
        targets_gpus: It compiles for other GPUs than the one that is there, or without one.
        readable: The program lies in the engine as text.
        overhead: Bytes of an engine, at most, that are neither weights nor such text.
        jit: Kernels are compiled on the GPU that they run on, and graphs are captured by the library.
    """

    name: str
    title: str
    module: str
    prefix: str
    targets_gpus: bool
    readable: bool
    overhead: int
    jit: bool

    @property
    def distribution(self) -> str:
        """As pip knows it."""
        return DISTRIBUTIONS[self.module]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def require(self) -> None:
        """Raise MissingPackageError if it is not installed."""
        if not self.installed:
            raise MissingPackageError(
                f"target {self.name}: {self.title} is not installed on this machine", install(self.module)
            )


TENSORRT_RTX = TensorRTPackage(
    "tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "rtx", targets_gpus=True, readable=True, overhead=1 << 20, jit=True
)
TENSORRT = TensorRTPackage(
    "tensorrt", "TensorRT", "tensorrt", "trt", targets_gpus=False, readable=False, overhead=256 << 20, jit=False
)
