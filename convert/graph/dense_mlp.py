"""SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.linear import linear


def dense_mlp(b: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """[..., H] -> [..., H]"""
    with b.at(path):
        gate = b.silu(linear(b, x, f"{path}.gate_proj"))
        return linear(b, b.op("Mul", gate, linear(b, x, f"{path}.up_proj")), f"{path}.down_proj")
