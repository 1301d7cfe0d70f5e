"""What a plugin does, told without TensorRT: one class for both TensorRT packages, and for programs that have none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from llmc.errors import MachineError
from llmc.runtime.plugins.kernel_set import KernelSet

Shape = Sequence[int]
Addresses = Sequence[int]
Dimension = int | tuple[int, int]  # a size, or that of an input's axis
MOST_MULTIPROCESSORS = 256  # that work is divided among: what workspaces must suffice for; no GPU has as many


@dataclass(frozen=True)
class InputSpec:
    """type: bf16, fp16, fp32, i8, i32 or i64. shape: None where any size will do."""

    type: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class OutputSpec:
    """aliased: the input whose memory it is, changed in place."""

    type: str
    shape: tuple[Dimension, ...]
    aliased: int | None = None


@dataclass(frozen=True)
class FixedLaunch:
    """What launches have to know of kernels whose programs take one thing each: nothing."""


@dataclass(frozen=True)
class Gpu:
    """sm: compute capability times ten."""

    sm: int
    multiprocessors: int
    device: int = 0

    @classmethod
    def current(cls) -> Gpu:
        from cuda.bindings import runtime as cuda

        error, device = cuda.cudaGetDevice()
        if error != cuda.cudaError_t.cudaSuccess:
            raise MachineError(f"there is no GPU that CUDA can use ({error.name})")
        kinds = cuda.cudaDeviceAttr
        major, minor, multiprocessors = (
            cuda.cudaDeviceGetAttribute(kind, device)[1]
            for kind in (
                kinds.cudaDevAttrComputeCapabilityMajor,
                kinds.cudaDevAttrComputeCapabilityMinor,
                kinds.cudaDevAttrMultiProcessorCount,
            )
        )
        return cls(10 * major + minor, multiprocessors, device)


class Operation(ABC):
    """scalars: names of the numbers that it takes besides tensors."""

    name: ClassVar[str]
    scalars: ClassVar[tuple[str, ...]] = ()

    def __init__(self, kernels: KernelSet) -> None:
        if kernels.operation != self.name:
            raise ValueError(f"kernels of {kernels.operation} for {self.name}")
        self.kernels = kernels

    @property
    @abstractmethod
    def inputs(self) -> tuple[InputSpec, ...]: ...

    @property
    @abstractmethod
    def outputs(self) -> tuple[OutputSpec, ...]: ...

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """On every GPU that there are kernels for, for inputs of up to these shapes; 0 by default."""
        return 0

    @abstractmethod
    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        """Does not wait. shapes: of the inputs; addresses are multiples of 16, that of the workspace of 256.

        All that it does is launch kernels on `stream`, with addresses that lie in what it is given: this is done once
        for some shapes, and then again with other addresses without asking (see prepared.py).
        """

    def check(self, shapes: Sequence[Sequence[int | None]], types: Sequence[str]) -> None:
        """ValueError unless the inputs are what kernels were compiled for. shapes: None where not yet known."""
        if len(shapes) != len(self.inputs):
            raise ValueError(f"{self.name} takes {len(self.inputs)} inputs, not {len(shapes)}")
        for number, (wanted, shape, kind) in enumerate(zip(self.inputs, shapes, types, strict=True)):
            fits = len(shape) == len(wanted.shape) and all(
                want is None or size is None or size == want for want, size in zip(wanted.shape, shape, strict=True)
            )
            if not fits or kind != wanted.type:
                raise ValueError(f"{self.name}: input {number} is {kind} {list(shape)}, not {wanted}")
