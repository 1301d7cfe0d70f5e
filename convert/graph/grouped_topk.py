"""Group-limited top-k routing (DeepSeek-V3, section 2.1.2)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import FunctionBuilder, GraphBuilder
from llmc.convert.graph.weight import WeightView
from llmc.convert.spec import RouterSpec


def grouped_topk_function(spec: RouterSpec) -> ir.Function:
    """`llmc.GroupedTopK`: logits [N, E], bias [E] -> index [N, K] int64, weight [N, K].

    A model routes in one way only, so the body is that way's; the node names it in `scoring` and `normalize`.
    The bias counts for the choice alone. A group's score is the sum of its two best experts, or the best.
    """
    integers = ("top_k", "num_groups", "top_k_groups", "normalize")
    b = FunctionBuilder(
        "GroupedTopK",
        ["logits", "bias"],
        dict.fromkeys(integers, ir.AttributeType.INT)
        | {"scaling_factor": ir.AttributeType.FLOAT, "scoring": ir.AttributeType.STRING},
    )
    logits, bias = b.inputs
    first, last = b.constant([0]), b.constant([-1])

    def count(attribute: str) -> ir.Value:
        return b.op("Unsqueeze", b.attribute(attribute), first)

    score = b.op("Sigmoid", logits) if spec.scoring == "sigmoid" else b.op("Softmax", logits, axis=-1)
    choice = b.op("Add", score, bias)
    if spec.num_groups > 1:
        groups = count("num_groups")
        grouped = b.op("Reshape", choice, b.concat(first, groups, last))  # [N, groups, experts per group]
        best, _ = b.op("TopK", grouped, b.constant([2 if spec.group_score == "best two" else 1]), outputs=2)
        group_score = b.op("ReduceSum", best, last, keepdims=0)
        _, chosen = b.op("TopK", group_score, count("top_k_groups"), outputs=2)
        # A group is open if one of those chosen is it: [N, groups, chosen] -> [N, groups, 1]
        chosen, groups = b.op("Unsqueeze", chosen, b.constant([1])), b.op("Unsqueeze", b.arange(groups), last)
        same = b.op("Cast", b.op("Equal", chosen, groups), to=int(ir.DataType.INT32))
        opened = b.op("Cast", b.op("ReduceMax", same, last), to=int(ir.DataType.BOOL))
        closed = b.cast_like(b.constant(float("-inf"), ir.DataType.FLOAT), logits)
        choice = b.op("Reshape", b.op("Where", opened, grouped, closed), b.op("Shape", logits))
    _, index = b.op("TopK", choice, count("top_k"), outputs=2)
    weight = b.op("GatherElements", score, index, axis=1)
    if spec.normalize:
        weight = b.op("Div", weight, b.op("ReduceSum", weight, last))
    weight = b.op("Mul", weight, b.cast_like(b.attribute("scaling_factor"), weight))
    return b.function(index, weight)


def grouped_topk(b: GraphBuilder, x: ir.Value, path: str, spec: RouterSpec) -> tuple[ir.Value, ir.Value]:
    """[N, H] -> index [N, K] int64 and weight [N, K]; in float32 in every graph, as the model was trained."""
    float32 = ir.DataType.FLOAT
    with b.at(path):
        weight = b.weight(f"{path}.weight", WeightView(), dtype=float32)
        logits = b.op("MatMul", b.cast(x, float32), weight)
        if spec.bias:
            logits = b.op("Add", logits, b.weight(f"{path}.bias", WeightView(), dtype=float32))
        if spec.selection_bias:
            bias = b.weight(f"{path}.e_score_correction_bias", WeightView(), dtype=float32)
        else:
            bias = b.constant([0.0] * spec.num_experts, float32)
        index, weight = b.call(
            grouped_topk_function(spec),
            logits,
            bias,
            outputs=2,
            top_k=spec.top_k,
            num_groups=spec.num_groups,
            top_k_groups=spec.top_k_groups,
            normalize=int(spec.normalize),
            scaling_factor=spec.scaling_factor,
            scoring=spec.scoring,
        )
        return index, b.cast(weight, b.dtype, float32)
