"""Root-mean-square normalization (Zhang and Sennrich 2019)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.weight import WeightView


def rms_norm(b: GraphBuilder, x: ir.Value, module: str, epsilon: float | None = None) -> ir.Value:
    """[..., n] -> [..., n]; the mean square is taken in float32 whatever the graph's type."""
    weight = b.weight(f"{module}.weight", WeightView())
    return b.op("RMSNormalization", x, weight, axis=-1, epsilon=epsilon or b.spec.rms_norm_eps, stash_type=1)
