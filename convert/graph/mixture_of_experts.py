"""Mixture of experts with shared experts (DeepSeekMoE, Dai et al. 2024)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import FunctionBuilder, GraphBuilder
from llmc.convert.graph.dense_mlp import dense_mlp
from llmc.convert.graph.grouped_topk import grouped_topk
from llmc.convert.graph.weight import WeightView
from llmc.convert.spec import MixtureOfExpertsSpec

_STACKS = ("gate", "up", "down")


def mixture_of_experts_function(spec: MixtureOfExpertsSpec) -> ir.Function:
    """`llmc.MixtureOfExperts`: x [N, H], index, weight [N, K], gate, up [E, H, I], down [E, I, H] and, where experts
    have biases, those of gate, up [E, I] and down [E, H] -> [N, H].

    The body computes every expert for every token and weighs those not chosen with zero: plain batched
    products, right for any E, and E / K times the work of the chosen ones. Targets replace it.
    """
    stacks = list(_STACKS) + [f"{name}_bias" for name in _STACKS if spec.bias]
    b = FunctionBuilder("MixtureOfExperts", ["x", "index", "weight", *stacks], {})
    x, index, weight, gate, up, down, *biases = b.inputs
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

    def projected(x: ir.Value, stack: ir.Value, bias: ir.Value | None) -> ir.Value:
        y: ir.Value = b.op("MatMul", x, stack)
        return y if bias is None else b.op("Add", y, b.op("Unsqueeze", bias, b.constant([1])))

    of_gate, of_up, of_down = biases or (None, None, None)
    inner = b.gated(projected(tokens, gate, of_gate), projected(tokens, up, of_up), spec.activation)  # [E, N, I]
    if of_down is None:
        outer = b.op("MatMul", b.op("Mul", inner, share), down)
    else:
        outer = b.op("Mul", projected(inner, down, of_down), share)
    return b.function(b.op("ReduceSum", outer, b.constant([0]), keepdims=0))


def mixture_of_experts(b: GraphBuilder, x: ir.Value, path: str, spec: MixtureOfExpertsSpec) -> ir.Value:
    """[B, S, H] -> [B, S, H]"""
    with b.at(path):
        tokens = b.reshape(x, -1, b.spec.hidden_size)
        index, weight = grouped_topk(b, tokens, f"{path}.gate", spec.router)
        stacks = [
            b.weight(
                [f"{path}.experts.{e}.{name}_proj.{part}" for e in range(spec.router.num_experts)],
                WeightView(stacked=True),
                name=f"{path}.experts.{name}_proj.{part}",
            )
            for part in ("weight", *["bias"] * spec.bias)
            for name in _STACKS
        ]
        y = b.call(mixture_of_experts_function(spec), tokens, index, weight, *stacks)
        y = b.op("Reshape", y, b.op("Shape", x))
    if spec.shared_experts:
        shared = dense_mlp(b, x, f"{path}.shared_experts", spec.shared_experts)
        with b.at(path):
            y = b.op("Add", y, shared)
    return y
