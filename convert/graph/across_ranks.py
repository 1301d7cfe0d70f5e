"""Where the graph of one rank of several meets the others: nothing, in the graph of a whole model.

The node is TensorRT's: its parser knows `DistCollective`, in ONNX's own domain, and no other program does.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder

COLLECTIVE = "DistCollective"


def summed(b: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """What all ranks make together of which each has a summand."""
    if b.checkpoint.ranks == 1:
        return x
    with b.at(path):
        return _collective(b, x, "all_reduce", "sum")


def joined(b: GraphBuilder, x: ir.Value, channels: int, path: str) -> ir.Value:
    """[B, L, n] → [B, L, channels], the ranks' one behind the other; x itself if it has all of them."""
    ranks, weight = b.checkpoint.ranks, f"{path}.weight"
    if ranks == 1 or b.checkpoint.shape(weight)[0] == channels:
        return x
    with b.at(path):
        all_rows = _collective(b, x, "all_gather", "none")  # [ranks * B, L, n]
        shape = b.concat(b.constant([ranks]), b.op("Shape", x), axis=0)
        ranks_last = b.transpose(b.op("Reshape", all_rows, shape), 1, 2, 0, 3)
        return b.reshape(ranks_last, 0, 0, channels)


def _collective(b: GraphBuilder, x: ir.Value, operation: str, reduce: str) -> ir.Value:
    attributes: dict[str, Any] = {"collective_operation": operation, "reduce_op": reduce, "nb_rank": b.checkpoint.ranks}
    found: ir.Value = b.op(COLLECTIVE, x, root=-1, **attributes)
    return found
