"""`llmc.LatentAttention`: absorbed MLA over the latent cache, split over its entries where there are few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtime.plugins.cubin import ALIGNMENT
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import Addresses, Gpu, InputSpec, Operation, OutputSpec, Shape

MOST_SPLITS = 128  # the kernel that joins them holds as many sums at once
MOST_MULTIPROCESSORS = 256  # that programs are spread over: what the workspace must suffice for on any GPU


@dataclass(frozen=True)
class LatentShape:
    """What a model fixes: Hq, R and P; `dtype` "bf16" or "fp16" of query, output and, unless `float8`, of the cache."""

    heads: int
    rank: int
    rope: int
    dtype: str
    float8: bool = False

    @property
    def channels(self) -> int:
        return self.rank + self.rope


@dataclass(frozen=True)
class LatentLaunch:
    """Of the kernels for one SM: a program takes so many rows of the query and entries at a time, and one of the kernel
    that joins splits so many channels.
    """

    rows: int
    entries: int
    channels: int


@dataclass(frozen=True)
class LatentPlan:
    """One launch for a query [B, Hq, S, R + P]."""

    shape: LatentShape
    layout: LatentLaunch
    batch: int
    tokens: int
    splits: int

    @property
    def rows(self) -> int:
        return self.tokens * self.shape.heads

    @property
    def grid(self) -> tuple[int, int, int]:
        return -(-self.rows // self.layout.rows), self.splits, self.batch

    @property
    def join_grid(self) -> tuple[int, int, int]:
        """Of the kernel that joins; needed for more than one split."""
        return self.rows, -(-self.shape.rank // self.layout.channels), self.batch

    @property
    def mixed_bytes(self) -> int:
        """Of the splits' values [B, splits, S * Hq, R] float32, filled up so that what follows is aligned."""
        return -(-self._sums_bytes * self.shape.rank // ALIGNMENT) * ALIGNMENT

    @property
    def workspace_bytes(self) -> int:
        """Of the values and, behind them, of the logarithms [B, splits, S * Hq] float32."""
        return self.mixed_bytes + self._sums_bytes

    @property
    def _sums_bytes(self) -> int:
        return 4 * self.batch * self.splits * self.rows if self.splits > 1 else 0


def plan(
    shape: LatentShape, layout: LatentLaunch, multiprocessors: int, batch: int, tokens: int, capacity: int
) -> LatentPlan:
    """As many splits as still run at once: a program fills a multiprocessor, and every split costs workspace traffic.

    The splits are even parts of the entries that there are, whatever the capacity: it only bounds their number.
    """
    if max(tokens * shape.heads, capacity) * shape.channels >= 2**31:
        raise ValueError(f"{tokens} tokens, capacity {capacity}: offsets inside of a sequence must fit 32 bits")
    programs = batch * -(-tokens * shape.heads // layout.rows)
    at_once = min(multiprocessors, MOST_MULTIPROCESSORS) // programs
    splits = max(1, min(at_once, -(-capacity // layout.entries), MOST_SPLITS))
    return LatentPlan(shape, layout, batch, tokens, splits)


class LatentAttentionPlugin(Operation):
    """query [B, Hq, S, R + P], cache [B, 1, T, R + P], cache_position [B] → [B, Hq, S, R].

    The query at offset s of row b sees the entries t <= cache_position[b] + s. An FP8 cache is E4M3 codes in int8, each
    to be multiplied by `cache_scale`.
    """

    name = "LatentAttention"
    scalars = ("scale", "cache_scale")

    def __init__(self, kernels: KernelSet, scale: float, cache_scale: float = 1.0) -> None:
        super().__init__(kernels)
        self.shape = LatentShape(**kernels.shape)
        self.scale, self.cache_scale = scale, cache_scale

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = self.shape
        cache_type = "i8" if shape.float8 else shape.dtype
        return (
            InputSpec(shape.dtype, (None, shape.heads, None, shape.channels)),
            InputSpec(cache_type, (None, 1, None, shape.channels)),
            InputSpec("i64", (None,)),
        )

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec(self.shape.dtype, ((0, 0), (0, 1), (0, 2), self.shape.rank)),)

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """Splits are so few that their programs run at once: their rows are bounded by the multiprocessors."""
        rows = max(layout["rows"] for layout in self.kernels.layouts.values())
        return 4 * MOST_MULTIPROCESSORS * rows * (self.shape.rank + 1) + ALIGNMENT

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        layout = LatentLaunch(**self.kernels.layouts[self.kernels.fitting(gpu.sm)])
        (batch, _, tokens, _), (_, _, capacity, _), _ = shapes
        chosen = plan(self.shape, layout, gpu.multiprocessors, batch, tokens, capacity)
        given = dict(zip(("query", "cache", "cache_position"), inputs, strict=True)) | {
            "scale": self.scale,
            "cache_scale": self.cache_scale,
            "tokens": tokens,
            "capacity": capacity,
        }
        if chosen.splits == 1:
            whole = self.kernels.kernel("whole", gpu.sm, gpu.device)
            whole.launch(chosen.grid, stream, **given, mixed=outputs[0])
            return
        parts = {"mixed": workspace, "logsum": workspace + chosen.mixed_bytes}
        split, join = (self.kernels.kernel(name, gpu.sm, gpu.device) for name in ("split", "join"))
        split.launch(chosen.grid, stream, **given, **parts)
        join.launch(chosen.join_grid, stream, **parts, output=outputs[0], tokens=tokens, splits=chosen.splits)


OPERATION = LatentAttentionPlugin
