"""Attention over as much of the cache as there can be anything in, without plugins: these look no further anyway.

A cache is as long as the context that the engine was compiled for, and TensorRT's attention reads all of it. A graph
input `window`, of which only the length counts, cuts off what lies behind the first entries; there are profiles for
several lengths. For the longest the compiler leaves the cut out; for others it copies what is left, so that a window
saves something while it is less than a third of the context.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.rewrite import Rewriter

SHORTEST = 1024
RATIO = 8  # of one window to the next


def windows(context: int, prefill: int) -> tuple[int, ...]:
    """Ascending; the last is the context."""
    found = [context]
    while found[0] // RATIO >= max(SHORTEST, prefill):
        found.insert(0, found[0] // RATIO)
    return tuple(found)


def add_window(b: Rewriter) -> None:
    """Give the graph the input `window` [W]: whoever reads a cache, or its length, finds W entries."""
    window = ir.Value(name="window", type=ir.TensorType(ir.DataType.INT8), shape=ir.Shape(["window"]))
    b.graph.inputs.append(window)
    for node in b.nodes("Shape"):
        past = node.inputs[0]
        if past is not None and str(past.name).startswith("past."):
            with b.before(node):
                b.replace(node, b.dimension(window, 0))
    for node in b.nodes("TensorScatter"):
        (present,) = node.outputs
        uses = list(present.uses())
        with b.before(min((use.node for use in uses), key=list(b.graph).index)):
            length = b.dimension(window, 0)
            cut = b.op("Slice", present, b.constant([0]), length, b.constant([2]))
        for user, place in uses:
            user.replace_input_with(place, cut)
