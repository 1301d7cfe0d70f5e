"""Routing and experts: com.microsoft MoEGroupRouter, QMoE for quantized experts and MoE for float ones."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from llmc.convert.graph.builder import DOMAIN
from llmc.convert.graph.rewrite import layer_of, producer, weight_of
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.spec import Activation, ClampedSwiGLU, MixtureOfExpertsSpec, ModelSpec
from llmc.convert.targets.onnxruntime.artifact_weights import FLOAT, ArtifactWeights
from llmc.convert.targets.onnxruntime.nbits import nbits

# log of a weight that is not chosen: its exponential is 0.
NOT_CHOSEN = -1e4


def lower_mixture_of_experts(rewriter: ArtifactWeights, spec: ModelSpec, accuracy_level: int) -> None:
    """Replace routing and experts, if these are of SwiGLU, which alone the kernels know gated.

    Both expert kernels choose the k largest of the "router probabilities" they are given and weigh these
    experts by a softmax over them. Given the logarithms of our weights, the choice is ours and the softmax
    is weight / sum of weights; the sum is put back behind the kernel, or into the weights if it is always the same.
    """
    for node in rewriter.nodes("MixtureOfExperts", DOMAIN):
        mlp = spec.mlps[layer_of(node)]
        assert isinstance(mlp, MixtureOfExpertsSpec)
        if mlp.activation == "gelu_tanh":
            continue
        router = producer(node.inputs[1])
        weights = [weight for value in node.inputs[3:] if (weight := weight_of(value))]
        with rewriter.before(node):
            log_weight, factor, total = _routing(rewriter, router)
            attributes = {
                "domain": "com.microsoft",
                "k": router.attributes["top_k"].as_int(),
                "normalize_routing_weights": 1,
                **_swiglu(mlp.activation),
            }
            if total is None:
                # The kernels take [B, S, H], too.
                flatten, (unflatten,) = producer(node.inputs[0]), node.outputs[0].consumers()
                x, last = flatten.inputs[0], unflatten
            else:
                x, last = node.inputs[0], node
            y = _experts(rewriter, x, log_weight, weights, factor, accuracy_level, attributes)
            rewriter.replace(last, y if total is None else rewriter.op("Mul", y, total))
        if last is not node:
            rewriter.graph.remove(node, safe=True)


def _swiglu(activation: Activation) -> dict[str, Any]:
    """The kernels' `(up + beta) * gate * sigmoid(alpha * gate)`."""
    attributes: dict[str, Any] = {"activation_type": "swiglu", "swiglu_fusion": 1}  # rows of gate and up take turns
    if isinstance(activation, ClampedSwiGLU):
        limit, alpha = activation.limit, activation.alpha
        return attributes | {"activation_alpha": alpha, "activation_beta": 1.0, "swiglu_limit": limit}
    return attributes | {"activation_alpha": 1.0, "activation_beta": 0.0}


def _routing(rewriter: ArtifactWeights, router: ir.Node) -> tuple[ir.Value, float, ir.Value | None]:
    """The logarithm of each chosen expert's weight [N, E], up to a constant, and the sum of the weights: a number, and
    where tokens differ a factor to it [N, 1].
    """
    attributes = router.attributes
    if attributes["scoring"].as_string() == "sigmoid" and attributes["normalize"].as_int():
        log_weight = rewriter.op(
            "MoEGroupRouter",
            *router.inputs,
            domain="com.microsoft",
            n_group=attributes["num_groups"].as_int(),
            topk_group=attributes["top_k_groups"].as_int(),
            top_k=attributes["top_k"].as_int(),
            group_topk=2,
            router_sentinel=NOT_CHOSEN,
        )
        return log_weight, attributes["scaling_factor"].as_float(), None
    index, weight = router.outputs
    nothing = rewriter.op("Expand", rewriter.constant(NOT_CHOSEN, FLOAT), rewriter.op("Shape", router.inputs[0]))
    log_weight = rewriter.op("ScatterElements", nothing, index, rewriter.op("Log", weight), axis=1)
    return log_weight, 1.0, rewriter.op("ReduceSum", weight, rewriter.constant([1]))


def _experts(
    rewriter: ArtifactWeights,
    x: ir.Value | None,
    log_weight: ir.Value,
    weights: list[WeightTensor],
    factor: float,
    accuracy_level: int,
    attributes: dict[str, Any],
) -> ir.Value:
    """[..., H] -> [..., H], the chosen experts' shares adding up to `factor`. `weights`: gate, up, down, and their
    biases, if they have any.
    """
    num_experts, hidden, inner = weights[0].shape.numpy()
    weights, biases = weights[:3], weights[3:]

    def two_layers(gate: ir.Value, up: ir.Value, down: ir.Value) -> tuple[ir.Value, ir.Value]:
        """[E, I, ...], [E, I, ...], [E, H, ...] -> rows of gate and up in turn [E, 2 I, n], down [E, H, m]"""
        pairs = [rewriter.op("Unsqueeze", value, rewriter.constant([2])) for value in (gate, up)]
        gate_up = rewriter.reshape(rewriter.concat(*pairs, axis=2), num_experts, 2 * inner, -1)
        return gate_up, rewriter.reshape(down, num_experts, hidden, -1)

    def scaled(down: ir.Value) -> ir.Value:
        return down if factor == 1 else rewriter.op("Mul", down, rewriter.constant(factor, FLOAT))

    first_bias, second_bias = None, None
    if biases:
        first_bias, second_bias = two_layers(*map(rewriter.matrices, biases))
        first_bias = rewriter.reshape(first_bias, num_experts, -1)
        second_bias = scaled(rewriter.reshape(second_bias, num_experts, -1))
    quantized = nbits(rewriter, weights, accuracy_level)
    if quantized is None:
        first, second = two_layers(*map(rewriter.matrices, weights))
        inputs = [x, log_weight, first, first_bias, scaled(second), *([second_bias] if biases else [])]
        return rewriter.op("MoE", *inputs, **attributes)
    first, second = two_layers(*quantized.qweight)
    first_scales, second_scales = two_layers(*quantized.scales)
    zeros = two_layers(*quantized.zero_points) if quantized.zero_points else ()
    return rewriter.op(
        "QMoE",
        *(x, log_weight, first, first_scales, first_bias, second, scaled(second_scales)),
        *((second_bias,) if zeros or biases else ()),
        *((None, None, None, *zeros) if zeros else ()),
        expert_weight_bits=quantized.bits,
        block_size=quantized.block,
        weights_prepacked=0,
        accuracy_level=accuracy_level,
        **attributes,
    )
