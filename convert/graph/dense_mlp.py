"""SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder


def dense_mlp(b: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """[..., H] -> [..., H]"""
    with b.at(path):
        gate = b.silu(b.linear(x, f"{path}.gate_proj"))
        return b.linear(b.op("Mul", gate, b.linear(x, f"{path}.up_proj")), f"{path}.down_proj")
