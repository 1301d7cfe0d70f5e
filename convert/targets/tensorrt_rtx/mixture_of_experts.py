"""Mixture of experts: the chosen experts are gathered when decoding, all are computed when prefilling."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.rewrite import Rewriter, weight_of
from llmc.convert.targets.tensorrt_rtx.phases import Phases
from llmc.convert.targets.tensorrt_rtx.weights import matrix


def mixture_of_experts(
    b: Rewriter, node: ir.Node, dtype: ir.DataType, fp8: bool, phases: Phases, batch: int
) -> None:
    """Replace `llmc.MixtureOfExperts`.

    Gathering makes one matrix per token and choice, so it pays while those are fewer than the experts: `batch`
    rows as wide as the widest decode step that keeps below.
    """
    x, index, weight = node.inputs[:3]
    gate, up, down = (weight_of(value) for value in node.inputs[3:])
    assert x and index and weight and gate and up and down
    experts, hidden, inner = (int(n) for n in gate.shape)
    top_k = int(index.shape[1]) if index.shape is not None else None
    with b.before(node):
        stacks = [matrix(b, gate, dtype, fp8), matrix(b, up, dtype, fp8), matrix(b, down, dtype, fp8, axis=1)]
        widths = [width for width in phases.widths if batch * width * top_k <= experts]
        if not widths:
            b.replace(node, _all(b, x, index, weight, stacks, experts, inner))
            return
        decode, prefill = zip(*(phases.split(v, 0, max(widths)) for v in (x, index, weight)), strict=True)
        y = b.concat(
            _chosen(b, *decode, stacks, experts, inner, hidden),
            _all(b, *prefill, stacks, experts, inner),
            axis=0,
        )
        b.replace(node, y)
