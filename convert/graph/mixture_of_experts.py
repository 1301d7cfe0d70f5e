"""Mixture of experts with shared experts (DeepSeekMoE, Dai et al. 2024)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import FunctionBuilder, GraphBuilder
from llmc.convert.graph.dense_mlp import dense_mlp
from llmc.convert.graph.grouped_topk import grouped_topk
from llmc.convert.graph.weight import WeightView
from llmc.convert.spec import MixtureOfExpertsSpec


def mixture_of_experts_function(spec: MixtureOfExpertsSpec) -> ir.Function:
    """`llmc.MixtureOfExperts`: x [N, H], index, weight [N, K], gate, up [E, H, I], down [E, I, H] -> [N, H].

    The body computes every expert for every token and weighs those not chosen with zero: plain batched
    products, right for any E, and E / K times the work of the chosen ones. Targets replace it.
    """
    b = FunctionBuilder("MixtureOfExperts", ["x", "index", "weight", "gate", "up", "down"], {})
    x, index, weight, gate, up, down = b.inputs
    experts = b.arange(b.dimension(gate, 0))
    chosen = b.cast_like(b.op("Equal", b.op("Unsqueeze", index, b.constant([-1])), experts), weight)
    share = b.op(
        "ReduceSum",
        b.op("Mul", chosen, b.op("Unsqueeze", weight, b.constant([-1]))),
        b.constant([1]),
        keepdims=0,
    )
    share = b.op("Unsqueeze", b.transpose(share, 1, 0), b.constant([-1]))  # [E, N, 1]
    tokens = b.op("Unsqueeze", x, b.constant([0]))
    inner = b.op(
        "Mul", b.activation(b.op("MatMul", tokens, gate), spec.activation), b.op("MatMul", tokens, up)
    )  # [E, N, I]
    outer = b.op("MatMul", b.op("Mul", inner, share), down)
    return b.function(b.op("ReduceSum", outer, b.constant([0]), keepdims=0))


def mixture_of_experts(b: GraphBuilder, x: ir.Value, path: str, spec: MixtureOfExpertsSpec) -> ir.Value:
    """[B, S, H] -> [B, S, H]"""
    with b.at(path):
        tokens = b.reshape(x, -1, b.spec.hidden_size)
        index, weight = grouped_topk(b, tokens, f"{path}.gate", spec.router)
        stacks = [
            b.weight(
                [f"{path}.experts.{e}.{projection}.weight" for e in range(spec.router.num_experts)],
                WeightView(stacked=True),
                name=f"{path}.experts.{projection}.weight",
            )
            for projection in ("gate_proj", "up_proj", "down_proj")
        ]
        y = b.call(mixture_of_experts_function(spec), tokens, index, weight, *stacks)
        y = b.op("Reshape", y, b.op("Shape", x))
    if spec.shared_experts:
        shared = dense_mlp(b, x, f"{path}.shared_experts", spec.shared_experts)
        with b.at(path):
            y = b.op("Add", y, shared)
    return y
