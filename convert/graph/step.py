"""What every layer of one forward step shares: the positions' angles, the mask, and the caches."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.linear import round_by
from llmc.convert.graph.rotary import rotary_angles
from llmc.convert.spec import GroupedQueryAttentionSpec, QueryScalingSpec

FLOAT = ir.DataType.FLOAT

# Finite, so that a masked score stays finite in every float type and never meets another infinity.
MASKED = -1e9


class StepInputs:
    """Inputs of one step: S new tokens per row, caches of capacity T, one per layer, written in place.

    A query at offset s of row b sees the cache entries t <= cache_position[b] + s, in a layer with a window the last of
    them. Others are hidden
    but take part in the product with weight zero: a cache must be allocated as zeros, not as arbitrary bits.
    """

    def __init__(self, b: GraphBuilder, layers: Sequence[int], capacity: int | str) -> None:
        self.position_ids = b.input("position_ids", ir.DataType.INT64, "batch", "sequence")
        self.cache_position = b.input("cache_position", ir.DataType.INT64, "batch")
        self.logits_index = b.input("logits_index", ir.DataType.INT64, "batch", "num_logits")
        # Once per graph for all layers that rotate alike.
        attentions = [b.spec.attentions[layer] for layer in layers]
        ropes = dict.fromkeys(attention.rope for attention in attentions)
        self.angles = {rope: rotary_angles(b, self.position_ids, rope) for rope in ropes if rope is not None}
        grouped = [each for each in attentions if isinstance(each, GroupedQueryAttentionSpec)]
        scalings = dict.fromkeys(each.query_scaling for each in grouped if each.query_scaling)
        self.query_scales = {scaling: self._query_scale(b, scaling) for scaling in scalings}
        self.past = {
            (layer, kind): b.input(f"past.{layer}.{kind}", b.dtype, "batch", heads, capacity, channels)
            for layer in layers
            for kind, (heads, channels) in b.spec.attentions[layer].cache_entry().items()
        }
        windows = dict.fromkeys(
            each.window if isinstance(each, GroupedQueryAttentionSpec) else None for each in attentions
        )
        self.masks = {window: self._mask(b, window) for window in windows}

    def _query_scale(self, b: GraphBuilder, scaling: QueryScalingSpec) -> ir.Value:
        """[B, 1, S, 1]"""
        steps = b.op("Cast", b.op("Div", self.position_ids, b.constant(scaling.length)), to=int(FLOAT))
        grown = b.op("Mul", b.op("Log", b.op("Add", steps, b.constant(1.0, FLOAT))), b.constant(scaling.beta, FLOAT))
        scale = b.cast(b.op("Add", grown, b.constant(1.0, FLOAT)), b.dtype, FLOAT)
        unsqueezed: ir.Value = b.op("Unsqueeze", scale, b.constant([1, 3]))
        return unsqueezed

    def _mask(self, b: GraphBuilder, window: int | None) -> ir.Value:
        """[B, 1, S, T] to be added to attention scores: 0 where visible."""
        entries = b.arange(b.dimension(next(iter(self.past.values())), 2))
        offsets = b.arange(b.dimension(self.position_ids, 1))
        last = b.op("Add", b.op("Unsqueeze", self.cache_position, b.constant([1])), offsets)
        last = b.op("Unsqueeze", last, b.constant([1, 3]))
        visible = b.op("LessOrEqual", entries, last)
        if window is not None:
            visible = b.op("And", visible, b.op("Greater", entries, b.op("Sub", last, b.constant(window))))
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
