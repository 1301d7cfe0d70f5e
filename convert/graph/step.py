"""What every layer of one forward step shares: the positions' angles, the mask, and the caches."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.linear import round_by
from llmc.convert.graph.rotary import rotary_angles

# Finite, so that a masked score stays finite in every float type and never meets another infinity.
MASKED = -1e9


class StepInputs:
    """Inputs of one step: S new tokens per row, caches of capacity T, one per layer, written in place.

    A query at offset s of row b sees the cache entries t <= cache_position[b] + s. Entries beyond are hidden
    but take part in the product with weight zero: a cache must be allocated as zeros, not as arbitrary bits.
    """

    def __init__(self, b: GraphBuilder, layers: Sequence[int], capacity: int | str) -> None:
        self.position_ids = b.input("position_ids", ir.DataType.INT64, "batch", "sequence")
        self.cache_position = b.input("cache_position", ir.DataType.INT64, "batch")
        self.logits_index = b.input("logits_index", ir.DataType.INT64, "batch", "num_logits")
        # Once per graph for all layers that rotate alike.
        ropes = dict.fromkeys(b.spec.attentions[layer].rope for layer in layers)
        self.angles = {rope: rotary_angles(b, self.position_ids, rope) for rope in ropes}
        self.past = {
            (layer, kind): b.input(f"past.{layer}.{kind}", b.dtype, "batch", heads, capacity, channels)
            for layer in layers
            for kind, (heads, channels) in b.spec.attentions[layer].cache_entry().items()
        }
        self.mask = self._mask(b)

    def _mask(self, b: GraphBuilder) -> ir.Value:
        """[B, 1, S, T] to be added to attention scores: 0 where visible."""
        entries = b.arange(b.dimension(next(iter(self.past.values())), 2))
        offsets = b.arange(b.dimension(self.position_ids, 1))
        last = b.op("Add", b.op("Unsqueeze", self.cache_position, b.constant([1])), offsets)
        visible = b.op("LessOrEqual", entries, b.op("Unsqueeze", last, b.constant([1, 3])))
        return b.op("Where", visible, b.constant(0.0, b.dtype), b.constant(MASKED, b.dtype))

    def append(self, b: GraphBuilder, layer: int, kind: str, entries: ir.Value) -> ir.Value:
        """Write `entries` [B, heads, S, channels] at `cache_position`: the cache [B, heads, T, channels].

        An FP8 cache is one of the graph's type that holds only what E4M3 can: the numbers are the same.
        """
        if b.spec.fp8_cache:
            scale = "v_scale" if kind == "value" else "k_scale"
            entries = round_by(b, entries, b.checkpoint.cache_scales(layer)[scale])
        past = self.past[layer, kind]
        present = b.op("TensorScatter", past, entries, self.cache_position, axis=2)
        b.output(present, f"present.{layer}.{kind}", b.dtype, *past.shape or ())
        return present
