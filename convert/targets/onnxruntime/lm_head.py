"""The head of a model that keeps it in floats, in 8 bits: it is read once per token, and all of it."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.rewrite import producer, weight_of
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.targets.onnxruntime.artifact_weights import ArtifactWeights
from llmc.convert.targets.onnxruntime.nbits import BLOCK_8BIT, eight_bit, matmul_nbits


def lower_lm_head(rewriter: ArtifactWeights) -> bool:
    """The product that makes the logits becomes MatMulNBits; False if its weight is quantized already.

    The table of tied embeddings stays what it is for the lookup.
    """
    node = producer(rewriter.graph.outputs[0])
    if node.op_type == "Add":
        node = producer(next(value for value in node.inputs if not weight_of(value)))
    weight = _head(node.inputs[1])
    if weight is None or weight.kind is not None:
        return False
    rows, columns = weight.checkpoint.shape(weight.names[0])
    if columns % BLOCK_8BIT:
        return False
    with rewriter.before(node):
        y = matmul_nbits(rewriter, node.inputs[0], eight_bit(rewriter, [weight]), 4, rows, columns)
        rewriter.replace(node, y)
    return True


def _head(value: ir.Value | None) -> WeightTensor | None:
    """The weight that `value` is, or that it is made of: a table is converted and transposed."""
    while weight_of(value) is None and value is not None and (node := value.producer()) is not None:
        value = node.inputs[0]
    return weight_of(value)
