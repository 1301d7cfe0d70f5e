"""Linear layers: one product for all that read the same input; com.microsoft MatMulNBits for quantized weights."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from llmc.convert.graph.rewrite import weight_of
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.targets.onnxruntime.artifact_weights import ArtifactWeights
from llmc.convert.targets.onnxruntime.nbits import matmul_nbits, nbits


def lower_linears(rewriter: ArtifactWeights, accuracy_level: int) -> None:
    """MatMul with a quantized weight becomes MatMulNBits where that can take it.

    Linears of one input and one kind of weight (query, key and value; gate and up) become a single node, whatever
    the weights are: a token is so little work that waking the threads for it takes as long as many a product.
    """
    alike: dict[object, list[tuple[ir.Node, WeightTensor]]] = {}
    for node in rewriter.nodes("MatMul"):
        weight = weight_of(node.inputs[1])
        if weight is not None and weight.layout.heads is None:
            alike.setdefault((node.inputs[0], weight.kind, _bias(node) is None), []).append((node, weight))
    for linears in alike.values():
        nodes, weights = zip(*linears, strict=True)
        _lower(rewriter, nodes, weights, accuracy_level)


def _lower(
    rewriter: ArtifactWeights, nodes: Sequence[ir.Node], weights: Sequence[WeightTensor], accuracy_level: int
) -> None:
    x = nodes[0].inputs[0]
    with rewriter.before(nodes[0]):
        quantized = nbits(rewriter, weights, accuracy_level)
        if quantized is None and len(nodes) == 1:
            return
        biases = [bias for node in nodes if (bias := _bias(node))]
        bias = rewriter.concat(*biases, axis=0) if len(biases) > 1 else next(iter(biases), None)
        rows, columns = [weight.shape.numpy()[1] for weight in weights], weights[0].shape.numpy()[0]
        if quantized is None:
            y = rewriter.op("MatMul", x, rewriter.op("Concat", *(node.inputs[1] for node in nodes), axis=1))
            y = y if bias is None else rewriter.op("Add", y, bias)
        else:
            y = matmul_nbits(rewriter, x, quantized, accuracy_level, sum(rows), columns, bias)
        outputs = rewriter.split(y, *rows) if len(nodes) > 1 else [y]
    for node, output in zip(nodes, outputs, strict=True):
        if biases:
            rewriter.replace(node.outputs[0].consumers()[0], output)
            rewriter.graph.remove(node, safe=True)
        else:
            rewriter.replace(node, output)


def _bias(node: ir.Node) -> ir.Value | None:
    """The weight [out] that is added to the product, if that is all that becomes of it."""
    users = node.outputs[0].consumers()
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    return next((value for value in users[0].inputs if weight_of(value)), None)
