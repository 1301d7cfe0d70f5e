"""The metadata of a file of compiled kernels, engines/NAME.kernels.safetensors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from llmc.contracts.part import Count, Part, Sha256


class KernelPart(Part):
    """Keys that are not named here are kept: they count for the hash."""

    model_config = ConfigDict(extra="allow")


class KernelArgument(KernelPart):
    """One argument of a kernel."""

    name: str = Field(description="its name")
    type: Annotated[str, Field(pattern=r"^(\*.*|i32|i64|fp32)$")] = Field(
        description="as Triton calls it; `*…` is an address"
    )


class KernelDescription(KernelPart):
    """What launching a kernel takes."""

    name: str = Field(description="its name in the cubin")
    sm: Count = Field(description="compute capability, times ten, that it was compiled for")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(description="threads of a block")
    shared_bytes: Annotated[int, Field(ge=0, lt=2**31)] = Field(description="shared memory of a block")
    alignment: Annotated[int, Field(ge=1, le=4096)] = Field(description="bytes that every address is a multiple of")
    arguments: Annotated[list[KernelArgument], Field(max_length=256)] = Field(description="in the order of the kernel")
    null_pointers: Annotated[int, Field(ge=0, le=16)] = Field(description="null addresses that follow the arguments")
    registers: Count = Field(description="registers of a thread")
    stack_bytes: Count = Field(description="bytes of a thread that were spilled to the stack")


class StoredKernel(KernelDescription):
    """What launching a kernel of the file takes, and where its cubin is."""

    cubin: Sha256 = Field(description="SHA-256 of the cubin, and the name of the tensor that holds it")


class CompiledFor(KernelPart):
    """The kernels of one compute capability."""

    layout: dict[str, Any] = Field(description="what launches depend on, by operation")
    kernels: dict[str, StoredKernel] = Field(description="role → kernel")


class KernelSetDescription(KernelPart):
    """The kernels of one operation for several GPUs. Its hash, over this as JSON with sorted keys, is its name."""

    operation: str = Field(description="LatentAttention, MixtureOfExperts or AppendFloat8")
    shape: dict[str, Any] = Field(description="what the operation was compiled for")
    sm: Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{2,4}$")], CompiledFor], Field(min_length=1)] = Field(
        description="compute capability, times ten → its kernels"
    )


class KernelSets(Part):
    """Metadata `llmc` of the file: the list `sets`, without the braces around it."""

    sets: list[KernelSetDescription] = Field(description="one per operation and shape")
