"""`llmc.PhasedLatentAttention`: MLA in absorbed form or expanded to heads, as a step's program has prepared it.

One node for both, since the compiler keeps a plugin in programs in which it has nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from llmc.runtime.plugins.expanded_latent_attention import ExpandedLatentAttentionPlugin, ExpandedLaunch, ExpandedShape
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.latent_attention import LatentAttentionPlugin, LatentLaunch, LatentShape
from llmc.runtime.plugins.latent_cache import LatentCacheOperation
from llmc.runtime.plugins.operation import Addresses, Gpu, InputSpec, OutputSpec, Shape

LEAST_EXPANDED = 128  # tokens of a step that fill a tile of the kernels: narrower ones are always absorbed
_T = TypeVar("_T")


@dataclass(frozen=True)
class PhasedShape(ExpandedShape):
    @property
    def absorbed(self) -> LatentShape:
        return LatentShape(self.heads, self.rank, self.rope, self.dtype, self.float8)


@dataclass(frozen=True)
class PhasedLaunch:
    """Of the kernels of both."""

    absorbed: LatentLaunch
    expanded: ExpandedLaunch


class PhasedLatentAttentionPlugin(LatentCacheOperation):
    """Absorbed query [B, Hq, S or 0, R + P], cache [B, 1, T, R + P], cache_position [B], query [B, S, Hq, N], rotated
    [B, Hq, S, P], key weight [Hq, N, R], value weight [Hq, R, V] → mixed latents [B, Hq, S or 0, R] and values
    [B, S, Hq * V]. Values are written if nothing is absorbed, and mixed latents if something is.

    See `LatentAttentionPlugin` and `ExpandedLatentAttentionPlugin`.
    """

    name = "PhasedLatentAttention"

    def __init__(self, kernels: KernelSet, scale: float, cache_scale: float = 1.0) -> None:
        super().__init__(kernels, scale, cache_scale)
        self.absorbed = LatentAttentionPlugin(
            kernels.part("absorbed", LatentAttentionPlugin.name, vars(self.shape.absorbed)), scale, cache_scale
        )
        self.expanded = ExpandedLatentAttentionPlugin(
            kernels.part("expanded", ExpandedLatentAttentionPlugin.name, vars(self.shape)), scale, cache_scale
        )

    @cached_property
    def shape(self) -> PhasedShape:
        return PhasedShape(**self.kernels.shape)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        query, rotated, _, _, *weights = self.expanded.inputs
        return (*self.absorbed.inputs, query, rotated, *weights)

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        (latent,), (values,) = self.absorbed.outputs, self.expanded.outputs
        return latent, OutputSpec(values.type, ((3, 0), (3, 1), values.shape[2]))

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """What the expanded form needs only where there may be nothing absorbed, or more tokens than a tile has."""
        absorbed, expanded = _parts(most)
        needed = self.absorbed.workspace_bytes(absorbed)
        if most[0][2] and most[3][1] <= LEAST_EXPANDED:
            return needed
        return max(needed, self.expanded.workspace_bytes(expanded))

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        absorbed, expanded = _parts(shapes)
        if shapes[0][2]:
            self.absorbed.launch(gpu, absorbed, inputs[:3], outputs[:1], workspace, stream)
        else:
            _, given = _parts(inputs)
            self.expanded.launch(gpu, expanded, given, outputs[1:], workspace, stream)


def _parts(given: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    """What the absorbed form takes of what there is for each input, and the expanded one."""
    query, cache, position, nope, rotated, *weights = given
    return (query, cache, position), (nope, rotated, cache, position, *weights)


OPERATION = PhasedLatentAttentionPlugin
