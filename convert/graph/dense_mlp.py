"""Gated MLPs, SwiGLU and GeGLU among them (Shazeer 2020): down(activation(gate(x)) * up(x))."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.linear import linear
from llmc.convert.spec import DenseMLPSpec


def dense_mlp(b: GraphBuilder, x: ir.Value, path: str, spec: DenseMLPSpec) -> ir.Value:
    """[..., H] -> [..., H]"""
    with b.at(path):
        gate, up = (linear(b, x, f"{path}.{name}_proj") for name in ("gate", "up"))
        return linear(b, b.gated(gate, up, spec.activation), f"{path}.down_proj")
