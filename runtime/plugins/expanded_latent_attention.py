"""MLA for prompts, by keys and values of every head, some of them at a time: a part of `llmc.PhasedLatentAttention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llmc.runtime.plugins.cubin import ALIGNMENT
from llmc.runtime.plugins.latent_cache import LatentCacheOperation
from llmc.runtime.plugins.operation import MOST_MULTIPROCESSORS, Addresses, Gpu, InputSpec, OutputSpec, Shape

MOST_EXPANDED = 256 << 20  # bytes of keys and values at a time
PROGRAMS = 4  # on a multiprocessor, one after the other or at once, so that the last ones are a small part


@dataclass(frozen=True)
class ExpandedShape:
    """What a model fixes: Hq, R, N, P and V; `dtype` "bf16" or "fp16" of all tensors but, if `float8`, the cache."""

    heads: int
    rank: int
    nope: int
    rope: int
    values: int
    dtype: str
    float8: bool = False

    @property
    def channels(self) -> int:
        """Of a cache entry."""
        return self.rank + self.rope

    @property
    def expanded(self) -> int:
        """Channels of a head that an entry is expanded to."""
        return self.nope + self.values


@dataclass(frozen=True)
class ExpandedLaunch:
    """Of the kernels for one SM: tokens of a program that attends, entries that are expanded together, a block, and how
    many programs expand a block for a head.
    """

    tokens: int
    block: int
    programs: int


@dataclass(frozen=True)
class ExpandedPlan:
    """The launches for a query [B, S, Hq, N].

    The blocks of entries of all sequences lie behind each other. So many heads of so many of them are expanded and
    attended to at a time, in `passes` over the blocks for each of the `groups` of heads. How many blocks there are is
    known on the GPU alone: the last passes may find none.
    """

    shape: ExpandedShape
    layout: ExpandedLaunch
    tokens: int
    heads: int
    groups: int
    blocks: int
    passes: int

    @property
    def attend_grid(self) -> tuple[int, int]:
        """For each head."""
        return -(-self.tokens // self.layout.tokens), self.heads

    @property
    def entries(self) -> int:
        return self.blocks * self.layout.block

    @property
    def keys_bytes(self) -> int:
        """Of keys [heads, entries, N]."""
        return _aligned(2 * self.heads * self.entries * self.shape.nope)

    @property
    def values_bytes(self) -> int:
        """Of values [heads, entries, V]."""
        return _aligned(2 * self.heads * self.entries * self.shape.values)

    @property
    def mixed_bytes(self) -> int:
        """Of [heads, S, V] float32, in which one pass leaves to the next what it made of a sequence."""
        return _aligned(4 * self.heads * self.tokens * self.shape.values) if self.passes > 1 else 0

    @property
    def sums_bytes(self) -> int:
        """Of the largest scores and of the sums of weights, [2, heads, S] float32."""
        return _aligned(4 * 2 * self.heads * self.tokens) if self.passes > 1 else 0

    @property
    def workspace_bytes(self) -> int:
        return self.keys_bytes + self.values_bytes + self.mixed_bytes + self.sums_bytes


def plan(
    shape: ExpandedShape,
    layout: ExpandedLaunch,
    multiprocessors: int,
    batch: int,
    tokens: int,
    capacity: int,
    most: int | None = None,
) -> ExpandedPlan:
    """Few heads of many entries at a time, as long as they fill the GPU: what is left between passes is little then."""
    most = MOST_EXPANDED if most is None else most
    tiles, all_blocks = -(-tokens // layout.tokens), batch * -(-capacity // layout.block)
    block_bytes = 2 * layout.block * shape.expanded
    heads = -(-PROGRAMS * min(multiprocessors, MOST_MULTIPROCESSORS) // tiles)
    heads = min(shape.heads, max(heads, most // (all_blocks * block_bytes)))
    groups = -(-shape.heads // heads)
    heads = -(-shape.heads // groups)
    blocks = max(1, min(all_blocks, most // (heads * block_bytes)))
    return ExpandedPlan(shape, layout, tokens, heads, groups, blocks, -(-all_blocks // blocks))


class ExpandedLatentAttentionPlugin(LatentCacheOperation):
    """query [B, S, Hq, N] and rotated [B, Hq, S, P], cache [B, 1, T, R + P], cache_position [B], key weight
    [Hq, N, R], value weight [Hq, R, V] → [B, S, Hq * V].
    """

    name = "ExpandedLatentAttention"

    @cached_property
    def shape(self) -> ExpandedShape:
        return ExpandedShape(**self.kernels.shape)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = self.shape
        return (
            InputSpec(shape.dtype, (None, None, shape.heads, shape.nope)),
            InputSpec(shape.dtype, (None, shape.heads, None, shape.rope)),
            *self.cache_inputs,
            InputSpec(shape.dtype, (shape.heads, shape.nope, shape.rank)),
            InputSpec(shape.dtype, (shape.heads, shape.rank, shape.values)),
        )

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec(self.shape.dtype, ((0, 0), (0, 1), self.shape.heads * self.shape.values)),)

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """Heads of which something is left between passes are as many as fill the GPU: their tokens are bounded."""
        shape, needed = self.shape, 0
        (batch, tokens, _, _), (_, _, capacity, _) = most[0], most[2]
        for layout in (ExpandedLaunch(**each) for each in self.kernels.layouts.values()):
            all_bytes = 2 * layout.block * shape.expanded * batch * -(-capacity // layout.block) * shape.heads
            tiles = PROGRAMS * MOST_MULTIPROCESSORS + -(-tokens // layout.tokens)
            left = 4 * (shape.values + 2) * min(tiles * layout.tokens, shape.heads * tokens)
            least = 2 * layout.block * shape.expanded * shape.heads  # where a block is more than all that there may be
            needed = max(needed, all_bytes if all_bytes <= MOST_EXPANDED else max(MOST_EXPANDED, least) + left)
        return needed + 4 * ALIGNMENT

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        layout = ExpandedLaunch(**self.kernels.layout(gpu.sm))
        (batch, tokens, _, _), (_, _, capacity, _) = shapes[0], shapes[2]
        if not batch * tokens:
            return
        chosen = plan(self.shape, layout, gpu.multiprocessors, batch, tokens, capacity)
        query, rotated, cache, cache_position, key_weight, value_weight = inputs
        keys, values = workspace, workspace + chosen.keys_bytes
        mixed = values + chosen.values_bytes
        sums = mixed + chosen.mixed_bytes
        if chosen.passes == 1:
            mixed = sums = workspace  # not used
        sizes = {"batch": batch, "tokens": tokens, "capacity": capacity, "blocks": chosen.blocks}
        given: dict[str, float] = {"cache": cache, "cache_position": cache_position, **sizes}
        attended = given | {"query": query, "rotated": rotated, "keys": keys, "values": values, "mixed": mixed}
        attended |= {"sums": sums, "output": outputs[0], "scale": self.scale, "cache_scale": self.cache_scale}
        expanded = given | {"key_weight": key_weight, "value_weight": value_weight, "keys": keys, "values": values}
        expand, attend = (self.kernels.kernel(name, gpu.sm, gpu.device) for name in ("expand", "attend"))
        for first_head in range(0, self.shape.heads, chosen.heads):
            heads = min(chosen.heads, self.shape.heads - first_head)
            programs = min(PROGRAMS * gpu.multiprocessors, heads * chosen.blocks * layout.programs)
            for turn in range(chosen.passes):
                place = {"first_head": first_head, "first_block": turn * chosen.blocks}
                expand.launch((programs, 1, 1), stream, **expanded, **place, heads=heads)
                attend.launch((chosen.attend_grid[0], heads, 1), stream, **attended, **place)


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
