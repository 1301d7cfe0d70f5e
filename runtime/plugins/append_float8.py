"""`llmc.AppendFloat8`: new entries of an FP8 cache, rounded to E4M3 and written in place.

TensorRT's own operator for caches takes float types of 16 and 32 bits only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import Addresses, Gpu, InputSpec, Operation, OutputSpec, Shape


@dataclass(frozen=True)
class EntryShape:
    """`dtype`, "bf16" or "fp16", is that of the entries."""

    channels: int
    dtype: str


class AppendFloat8Plugin(Operation):
    """cache [B, 1, T, C] int8, entries [B, 1, S, C], cache_position [B] → the cache, in the same memory.

    Codes are those of entry / cache_scale, rounded to the nearest, ties to even; what is too large becomes 448.
    """

    name = "AppendFloat8"
    scalars = ("cache_scale",)

    def __init__(self, kernels: KernelSet, cache_scale: float) -> None:
        super().__init__(kernels)
        self.shape = EntryShape(**kernels.shape)
        self.cache_scale = cache_scale

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = (None, 1, None, self.shape.channels)
        return InputSpec("i8", shape), InputSpec(self.shape.dtype, shape), InputSpec("i64", (None,))

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec("i8", ((0, 0), 1, (0, 2), self.shape.channels), aliased=0),)

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        (_, _, capacity, _), (batch, _, tokens, _), _ = shapes
        cache, entries, cache_position = inputs
        if outputs[0] != cache:
            raise ValueError("the cache must be written in place: bind past and present to the same memory")
        self.kernels.kernel("append", gpu.sm, gpu.device).launch(
            (tokens, batch, 1), stream, cache=cache, entries=entries, cache_position=cache_position,
            cache_scale=self.cache_scale, tokens=tokens, capacity=capacity,
        )  # fmt: skip


OPERATION = AppendFloat8Plugin
