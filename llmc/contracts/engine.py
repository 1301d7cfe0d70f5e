"""The .json beside an engine of TensorRT or TensorRT-RTX."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llmc.contracts.part import AxisSize, BareName, Count, Part, Sha256


class EngineProfile(Part):
    """Shapes that one compiled program of the engine takes."""

    tokens: Annotated[list[AxisSize], Field(min_length=2, max_length=2)] = Field(
        description="the least and most tokens per row of a step"
    )
    window: AxisSize = Field(description="cache entries that a step looks at")
    shapes: dict[str, list[list[Count]]] = Field(default={}, description="input → smallest, usual and largest shape")


class EngineTensor(Part):
    """An input or output."""

    name: str = Field(description="input_ids, cache_position, past.LAYER.…, logits, …")
    dtype: Literal["bool", "int8", "int32", "int64", "float", "half", "bf16"] = Field(
        description="type of its elements"
    )
    shape: Annotated[list[Annotated[int, Field(ge=-1, lt=2**31)]], Field(max_length=8)] = Field(
        description="its axes; -1: any size"
    )

    @model_validator(mode="after")
    def _caches_have_four_axes(self) -> EngineTensor:
        if self.name.startswith("past.") and (len(self.shape) != 4 or min(self.shape[1:]) < 1):
            raise ValueError(f"the shape of {self.name!r} is {self.shape}; caches have four axes")
        return self


class EngineProgram(Part):
    """What the program text of an engine says of one profile."""

    sm: list[Count] = Field(description="compute capabilities, times ten, that it runs on")
    parts: Count = Field(description="compiled parts that follow each other")
    constant_bytes: dict[str, Count] = Field(description="type → bytes of weights in it")
    kernels: dict[str, Count] = Field(description="kernel → how often it occurs")
    multiplied_bytes: dict[str, Count] = Field(
        default={}, description="type → bytes of codes that products read as they are"
    )
    plugin_bytes: dict[str, Count] = Field(default={}, description="type → bytes of codes that plugins read")
    gathered_bytes: dict[str, Count] = Field(
        default={}, description="type → bytes of codes of which those of chosen experts alone are read and decoded"
    )
    decoded_bytes: dict[str, Count] = Field(
        default={}, description="type → bytes of codes that every step decodes into memory, all of them"
    )
    decoded: list[str] = Field(default=[], description="weights that those are")


class EngineDescription(Part):
    """What an engine is for. It is read before the engine is: deserializing the wrong one can end the process."""

    engine: BareName = Field(description="the engine's file, in the same folder")
    graph: Literal["main", "mtp"] = Field(description="the model, or its layer for multi-token prediction")
    bytes: Count = Field(description="size of the engine")
    sha256: Sha256 = Field(description="SHA-256 of the engine")
    package: str = Field(description="Python module that compiled it: tensorrt or tensorrt_rtx")
    release: str = Field(description="version of that package; no other reads the engine")
    sm: Annotated[list[Count], Field(min_length=1)] = Field(
        description="compute capabilities, times ten, that it runs on"
    )
    ranks: AxisSize = Field(default=1, description="GPUs that hold the model together, each with an engine of its own")
    rank: Count = Field(default=0, description="which of them this engine is for, counted from 0")
    context: AxisSize = Field(description="cache entries per row")
    batch: AxisSize = Field(description="most rows in a step")
    profiles: Annotated[list[EngineProfile], Field(min_length=1)] = Field(
        description="shapes that it takes, one program each"
    )
    plugins: list[str] = Field(description="plugins that it needs")
    kernels: BareName | None = Field(default=None, description="the file of their kernels, in the same folder")
    kernel_sets: list[str] = Field(
        default=[], description="kernel sets of that file that it was built with, by their hashes"
    )
    inputs: list[EngineTensor] = Field(description="inputs; caches begin with `past.`")
    outputs: list[EngineTensor] = Field(description="outputs; caches begin with `present.`")
    weight_bytes: dict[str, Count] = Field(description="type → bytes of the weights that it was made of")
    text_bytes: Count = Field(description="bytes of program text in it")
    programs: list[EngineProgram] = Field(default=[], description="what that text says; empty where it cannot be read")
    ops: dict[str, Any] = Field(default={}, description="operator → how often its graph has it")

    @model_validator(mode="after")
    def _has_what_plugins_need(self) -> EngineDescription:
        if self.plugins and self.kernels is None:
            raise ValueError("plugins without kernels")
        if self.rank >= self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks}")
        if missing := {"input_ids", "cache_position", "logits_index"} - {each.name for each in self.inputs}:
            raise ValueError(f"no input {min(missing)!r}")
        if "logits" not in {each.name for each in self.outputs}:
            raise ValueError("no output 'logits'")
        return self
