"""A residual and the norm behind it: com.microsoft SkipSimplifiedLayerNormalization."""

from __future__ import annotations

from llmc.convert.graph.rewrite import Rewriter, weight_of


def lower_residual_norms(rewriter: Rewriter) -> None:
    """X + y [B, S, H] and its norm come from one node, the sum as its last output."""
    for node in rewriter.nodes("RMSNormalization"):
        total, weight = node.inputs
        add = total.producer() if total is not None else None
        # A bias is no residual.
        if add is None or add.op_type != "Add" or any(weight_of(value) for value in add.inputs):
            continue
        with rewriter.before(add):
            normed, mean, deviation, added = rewriter.op(
                "SkipSimplifiedLayerNormalization",
                *(*add.inputs, weight),
                domain="com.microsoft",
                outputs=4,
                epsilon=node.attributes["epsilon"].as_float(),
            )
        mean.name = deviation.name = ""  # nobody wants them
        rewriter.replace(node, normed)
        rewriter.replace(add, added)
