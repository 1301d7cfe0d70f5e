"""`llmc.LatentAttention`: absorbed MLA over the latent cache; where there are few tokens, workers share its entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llmc.runtime.plugins.cubin import ALIGNMENT
from llmc.runtime.plugins.latent_cache import LatentCacheOperation
from llmc.runtime.plugins.operation import MOST_MULTIPROCESSORS, Addresses, Gpu, InputSpec, OutputSpec, Shape

MOST_WORKERS = MOST_MULTIPROCESSORS  # the kernel that joins their parts holds as many sums at once


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
    that joins parts so many channels; a multiprocessor holds so many programs.
    """

    rows: int
    entries: int
    channels: int
    programs: int = 1


@dataclass(frozen=True)
class LatentPlan:
    """One launch for a query [B, Hq, S, R + P]."""

    shape: LatentShape
    layout: LatentLaunch
    batch: int
    tokens: int
    workers: int

    @property
    def rows(self) -> int:
        return self.tokens * self.shape.heads

    @property
    def grid(self) -> tuple[int, int, int]:
        return -(-self.rows // self.layout.rows), self.workers, 1

    @property
    def join_grid(self) -> tuple[int, int, int]:
        """Of the kernel that joins; needed for more than one worker."""
        return self.rows, -(-self.shape.rank // self.layout.channels), self.batch

    @property
    def mixed_bytes(self) -> int:
        """Of the parts' values [workers, 2, S * Hq, R] float32, filled up so that what follows is aligned."""
        return -(-self._sums_bytes * self.shape.rank // ALIGNMENT) * ALIGNMENT

    @property
    def workspace_bytes(self) -> int:
        """Of the values and, behind them, of the logarithms [workers, 2, S * Hq] float32."""
        return self.mixed_bytes + self._sums_bytes

    @property
    def _sums_bytes(self) -> int:
        return 4 * 2 * self.workers * self.rows if self.workers > 1 else 0


def plan(
    shape: LatentShape, layout: LatentLaunch, multiprocessors: int, batch: int, tokens: int, capacity: int
) -> LatentPlan:
    """As many workers for each tile of rows as run at once. How long the sequences are is known on the GPU alone, where
    every worker takes an even part of their entries.
    """
    if max(tokens * shape.heads, capacity) * shape.channels >= 2**31:
        raise ValueError(f"{tokens} tokens, capacity {capacity}: offsets inside of a sequence must fit 32 bits")
    at_once = layout.programs * min(multiprocessors, MOST_WORKERS) // -(-tokens * shape.heads // layout.rows)
    workers = max(1, min(at_once, batch * -(-capacity // layout.entries), MOST_WORKERS))
    return LatentPlan(shape, layout, batch, tokens, workers)


class LatentAttentionPlugin(LatentCacheOperation):
    """query [B, Hq, S, R + P], cache [B, 1, T, R + P], cache_position [B] → [B, Hq, S, R]."""

    name = "LatentAttention"

    @cached_property
    def shape(self) -> LatentShape:
        return LatentShape(**self.kernels.shape)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return InputSpec(self.shape.dtype, (None, self.shape.heads, None, self.shape.channels)), *self.cache_inputs

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec(self.shape.dtype, ((0, 0), (0, 1), (0, 2), self.shape.rank)),)

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """Workers are so few that all run at once: their rows are bounded by the multiprocessors."""
        rows = max(layout["rows"] * layout.get("programs", 1) for layout in self.kernels.layouts.values())
        return 4 * 2 * MOST_WORKERS * rows * (self.shape.rank + 1) + ALIGNMENT

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        layout = LatentLaunch(**self.kernels.layout(gpu.sm))
        (batch, _, tokens, _), (_, _, capacity, _), _ = shapes
        chosen = plan(self.shape, layout, gpu.multiprocessors, batch, tokens, capacity)
        query, cache, cache_position = inputs
        parts = {"mixed": workspace, "logsum": workspace + chosen.mixed_bytes}
        sizes = {"batch": batch, "tokens": tokens, "capacity": capacity}
        given = parts | sizes | {"cache_position": cache_position, "output": outputs[0]}
        attend = self.kernels.kernel("attend", gpu.sm, gpu.device)
        scales = {"scale": self.scale, "cache_scale": self.cache_scale}
        attend.launch(chosen.grid, stream, query=query, cache=cache, **given, **scales)
        if chosen.workers > 1:
            join = self.kernels.kernel("join", gpu.sm, gpu.device)
            join.launch(chosen.join_grid, stream, **given, workers=chosen.workers)


OPERATION = LatentAttentionPlugin
