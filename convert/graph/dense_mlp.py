"""SwiGLU and GeGLU (Shazeer 2020): down(activation(gate(x)) * up(x))."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.linear import linear
from llmc.convert.spec import DenseMLPSpec


def dense_mlp(b: GraphBuilder, x: ir.Value, path: str, spec: DenseMLPSpec) -> ir.Value:
    """[..., H] -> [..., H]"""
    with b.at(path):
        gate = b.activation(linear(b, x, f"{path}.gate_proj"), spec.activation)
        return linear(b, b.op("Mul", gate, linear(b, x, f"{path}.up_proj")), f"{path}.down_proj")
