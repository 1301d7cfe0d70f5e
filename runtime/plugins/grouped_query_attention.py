"""`llmc.GroupedQueryAttention`: attention over what there is in a cache, cut into parts where there are few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtime.plugins.cubin import ALIGNMENT
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import MOST_MULTIPROCESSORS, Addresses, Gpu, InputSpec, Operation, OutputSpec, Shape

MOST_SEQUENCES = 128  # among which a program looks for its own
AT_ONCE = 2  # programs of few rows on a multiprocessor


@dataclass(frozen=True)
class GroupedQueryShape:
    """What a layer fixes: Hq, G, D, V, the window (0: none), and whether scores are capped and heads have sinks.

    Attributes:
        dtype: "bf16" or "fp16", of all tensors
    """

    heads: int
    groups: int
    channels: int
    values: int
    dtype: str
    window: int = 0
    softcap: bool = False
    sinks: bool = False

    @property
    def heads_per_group(self) -> int:
        return self.heads // self.groups


@dataclass(frozen=True)
class GroupedQueryLaunch:
    """Of the kernels for one SM: rows of a program where there are few or many, and the channels of one that joins."""

    few: int
    many: int
    channels: int


@dataclass(frozen=True)
class GroupedQueryPlan:
    """One launch for a query [B, Hq, S, D]. The entries of all sequences are cut into about `portions` equal parts, so
    that a long one among short ones gets more; 0: nothing is cut.
    """

    shape: GroupedQueryShape
    layout: GroupedQueryLaunch
    batch: int
    tokens: int
    tile: str  # "few" or "many"
    portions: int

    @property
    def rows(self) -> int:
        """Of one group."""
        return self.tokens * self.shape.heads_per_group

    @property
    def places(self) -> int:
        """Parts that there can be: every sequence may have a last one that is not full."""
        return self.portions + self.batch - 1 if self.portions else 0

    @property
    def grid(self) -> tuple[int, int, int]:
        tiles = -(-self.rows // getattr(self.layout, self.tile)) * self.shape.groups
        return (tiles, self.places, 1) if self.portions else (tiles * self.batch, 1, 1)

    @property
    def join_grid(self) -> tuple[int, int, int]:
        """Of the kernel that joins."""
        return self.batch * self.tokens * self.shape.heads, -(-self.shape.values // self.layout.channels), 1

    @property
    def mixed_bytes(self) -> int:
        """Of the parts' values [places, G, rows, V] float32, filled up so that what follows is aligned."""
        return -(-self._sums_bytes * self.shape.values // ALIGNMENT) * ALIGNMENT

    @property
    def workspace_bytes(self) -> int:
        """Of the values and, behind them, of the logarithms [places, G, rows] float32."""
        return self.mixed_bytes + self._sums_bytes

    @property
    def _sums_bytes(self) -> int:
        return 4 * self.places * self.shape.groups * self.rows


def plan(
    shape: GroupedQueryShape, layout: GroupedQueryLaunch, multiprocessors: int, batch: int, tokens: int
) -> GroupedQueryPlan:
    """As many parts as run at once. Sequences are cut where they are too few for the GPU, and where there are few rows
    in each, since their lengths may differ.
    """
    rows = tokens * shape.heads_per_group
    few = rows <= 2 * layout.few
    tile = "few" if few else "many"
    programs = shape.groups * -(-rows // getattr(layout, tile))  # of one part
    at_once = min(multiprocessors, MOST_MULTIPROCESSORS) * (AT_ONCE if few else 1)
    portions = max(1, at_once // programs)
    alone = portions == 1 and batch == 1
    cut = batch <= MOST_SEQUENCES and not alone and (few or batch * programs < at_once)
    return GroupedQueryPlan(shape, layout, batch, tokens, tile, portions if cut else 0)


class GroupedQueryAttentionPlugin(Operation):
    """query [B, Hq, S, D], key [B, G, T, D], value [B, G, T, V], cache_position [B], sinks [Hq] → [B, Hq, S, V].

    The query at offset s of row b sees the entries t <= cache_position[b] + s, with a window the last of them. A score
    is scale * query * key, with a cap `softcap * tanh(score / softcap)`; a sink is the score of an entry without value.
    """

    name = "GroupedQueryAttention"
    scalars = ("scale", "softcap")

    def __init__(self, kernels: KernelSet, scale: float, softcap: float = 0.0) -> None:
        super().__init__(kernels)
        self.shape = GroupedQueryShape(**kernels.shape)
        self.scale, self.softcap = scale, softcap

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = self.shape
        given = (
            InputSpec(shape.dtype, (None, shape.heads, None, shape.channels)),
            InputSpec(shape.dtype, (None, shape.groups, None, shape.channels)),
            InputSpec(shape.dtype, (None, shape.groups, None, shape.values)),
            InputSpec("i64", (None,)),
        )
        return (*given, InputSpec(shape.dtype, (shape.heads,))) if shape.sinks else given

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec(self.shape.dtype, ((0, 0), (0, 1), (0, 2), self.shape.values)),)

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """Parts are as many as run at once, and one more for each sequence."""
        shape, needed = self.shape, 0
        batch, _, tokens, _ = most[0]
        for layout in (GroupedQueryLaunch(**each) for each in self.kernels.layouts.values()):
            rows = min(tokens * shape.heads_per_group, 2 * layout.few)
            programs = shape.groups * -(-rows // layout.few) * min(batch, MOST_SEQUENCES)
            needed = max(needed, layout.few * (AT_ONCE * MOST_MULTIPROCESSORS + 2 * programs))
            if tokens * shape.heads_per_group > rows:
                needed = max(needed, layout.many * 2 * MOST_MULTIPROCESSORS)
        return 4 * needed * (shape.values + 1) + ALIGNMENT

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        layout = GroupedQueryLaunch(**self.kernels.layout(gpu.sm))
        (batch, _, tokens, _), (_, _, capacity, _) = shapes[:2]
        chosen = plan(self.shape, layout, gpu.multiprocessors, batch, tokens)
        place: dict[str, float] = {"cache_position": inputs[3], "tokens": tokens, "capacity": capacity}
        given = dict(zip(("query", "key", "value"), inputs, strict=False)) | place
        given["scale"] = self.scale
        if self.shape.softcap:
            given["softcap"] = self.softcap
        if self.shape.sinks:
            given["sinks"] = inputs[4]
        if not chosen.portions:
            whole = self.kernels.kernel(f"whole_{chosen.tile}", gpu.sm, gpu.device)
            whole.launch(chosen.grid, stream, **given, mixed=outputs[0])
            return
        parts = {"mixed": workspace, "logsum": workspace + chosen.mixed_bytes}
        parts |= {"sequences": batch, "portions": chosen.portions}
        split, join = (self.kernels.kernel(f"{name}_{chosen.tile}", gpu.sm, gpu.device) for name in ("split", "join"))
        split.launch(chosen.grid, stream, **given, **parts)
        join.launch(chosen.join_grid, stream, **parts, **place, output=outputs[0])


OPERATION = GroupedQueryAttentionPlugin
