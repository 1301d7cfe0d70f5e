"""Routing: one plugin, where standard operators take eight kernels for each layer with experts."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.engines.plugins import TYPES, Plugins
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.spec import RouterSpec
from llmc.runtime.plugins.grouped_topk import RoutingShape


def grouped_topk_plugin(b: Rewriter, node: ir.Node, spec: RouterSpec, plugins: Plugins) -> None:
    """Replace `llmc.GroupedTopK` by the plugin of that name, which rounds weights, too, where a Cast did."""
    logits, bias = node.inputs
    assert logits and bias
    users = node.outputs[1].consumers()
    rounding = users[0] if [user.op_type for user in users] == ["Cast"] else None
    to = ir.DataType.FLOAT if rounding is None else ir.DataType(rounding.attributes["to"].as_int())
    with b.before(node):
        request = KernelRequest("GroupedTopK", routing_shape(spec, TYPES[to]))
        index, weight = plugins.add_all(b, request, 2, logits, bias)
    if rounding is not None:
        b.replace(rounding, weight)
    b.replace(node, index, weight)


def routing_shape(spec: RouterSpec, dtype: str) -> RoutingShape:
    return RoutingShape(
        experts=spec.num_experts,
        top_k=spec.top_k,
        groups=spec.num_groups,
        top_groups=spec.top_k_groups,
        scoring=spec.scoring,
        best=2 if spec.group_score == "best two" else 1,
        normalize=spec.normalize,
        scaling_factor=spec.scaling_factor,
        dtype=dtype,
    )
