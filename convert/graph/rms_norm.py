"""Root-mean-square normalization (Zhang and Sennrich 2019)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.weight import WeightView
from llmc.convert.spec import NormSpec


def rms_norm(b: GraphBuilder, x: ir.Value, module: str, spec: NormSpec) -> ir.Value:
    """[..., n] -> [..., n]; the mean square is taken in float32 whatever the graph's type."""
    weight = b.weight(f"{module}.weight", WeightView())
    if spec.unit_offset:
        weight = b.op("Add", weight, b.constant(1.0, b.dtype))
    return b.op("RMSNormalization", x, weight, axis=-1, epsilon=spec.eps, stash_type=1)
