"""The head of a model that keeps it in floats, in 8 bits: it is read once per token, and all of it."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.rewrite import producer, weight_of
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.targets.onnxruntime.artifact_weights import ArtifactWeights
from llmc.convert.targets.onnxruntime.nbits import BLOCK_8BIT, eight_bit, matmul_nbits

_BEHIND = {"Add", "Cast", "Div", "Mul", "Tanh"}


def lower_lm_head(rewriter: ArtifactWeights) -> bool:
    """The product that makes the logits becomes MatMulNBits; False if its weight is quantized already.

    The table of tied embeddings stays what it is for the lookup.
    """
    node = _product(producer(rewriter.graph.outputs[0]))
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


def _product(node: ir.Node) -> ir.Node:
    """What `node` is made of by adding a bias, and scaling and capping logits."""
    while node.op_type in _BEHIND:
        made = [value.producer() for value in node.inputs if value is not None and not weight_of(value)]
        node = next(each for each in made if each is not None and each.op_type != "Constant")
    return node


def _head(value: ir.Value | None) -> WeightTensor | None:
    """The weight that `value` is, or that it is made of: a table is converted and transposed."""
    while weight_of(value) is None and value is not None and (node := value.producer()) is not None:
        value = node.inputs[0]
    return weight_of(value)
