"""Grouped-query attention as one plugin, which reads what there is in the cache, whatever it has room for.

TensorRT's own attention reads all that there is room for, and where it has no kernel for a shape it is taken apart,
with keys and values copied for every head.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.engines.plugins import TYPES, Plugins
from llmc.convert.graph.grouped_query_attention import NAME
from llmc.convert.graph.rewrite import Rewriter, producer
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.spec import GroupedQueryAttentionSpec
from llmc.runtime.plugins.grouped_query_attention import GroupedQueryShape


def grouped_query_attention_plugin(
    b: Rewriter, node: ir.Node, spec: GroupedQueryAttentionSpec, dtype: ir.DataType, plugins: Plugins
) -> None:
    """Replace `Attention` or `llmc.GroupedQueryAttention` by the plugin, which takes `cache_position` and the window
    for the mask.
    """
    query, key, value, _, *sinks = node.inputs
    assert query and key and value
    append = producer(key)
    cache_position = append.inputs[2]
    assert append.op_type == "TensorScatter" and cache_position is not None
    shape = GroupedQueryShape(
        heads=spec.num_heads,
        groups=spec.num_kv_heads,
        channels=spec.head_dim,
        values=spec.value_size,
        dtype=TYPES[dtype],
        window=spec.window or 0,
        softcap=spec.softcap is not None,
        sinks=spec.sinks,
    )
    given = [query, key, value, cache_position, *(each for each in sinks if each is not None)]
    with b.before(node):
        wanted = KernelRequest(NAME, shape)
        scalars = {"scale": spec.softmax_scale, "softcap": spec.softcap or 0.0}
        b.replace(node, plugins.add(b, wanted, *given, **scalars))
