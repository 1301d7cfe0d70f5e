"""Linear layers with quantised weights: com.microsoft MatMulNBits."""

from __future__ import annotations

from llmc.convert.graph.rewrite import weight_of
from llmc.convert.targets.onnxruntime.artifact_weights import ArtifactWeights
from llmc.convert.targets.onnxruntime.nbits import nbits


def lower_linears(rewriter: ArtifactWeights, accuracy_level: int) -> None:
    """MatMul with a quantised weight becomes MatMulNBits where that can take it."""
    for node in rewriter.nodes("MatMul"):
        x, weight = node.inputs[0], weight_of(node.inputs[1])
        if weight is None or weight.layout.heads is not None:
            continue
        with rewriter.before(node):
            quantised = nbits(rewriter, [weight], accuracy_level)
            if quantised is None:
                continue
            columns, rows = weight.shape.numpy()
            y = rewriter.op(
                "MatMulNBits",
                *(x, *quantised.codes, *quantised.scales, *(quantised.zeros or ())),
                domain="com.microsoft",
                N=rows,
                K=columns,
                bits=quantised.bits,
                block_size=quantised.block,
                accuracy_level=accuracy_level,
            )
            rewriter.replace(node, y)
