"""Products that TensorRT would decode the matrix for, in every step: one plugin, which reads the codes."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.engines.plugin_weights import stack, stored_in_engine
from llmc.convert.engines.plugins import TYPES, Plugins
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.linear import LinearShape


def linear_plugin(b: Rewriter, node: ir.Node, weight: WeightTensor, dtype: ir.DataType, plugins: Plugins) -> None:
    """Replace a MatMul of x [..., in] and `weight` by the plugin `llmc.Linear`."""
    x = node.inputs[0]
    outputs, inputs = weight.checkpoint.shape(weight.names[0])
    form = stored_in_engine(weight)
    request = KernelRequest("Linear", LinearShape(inputs, outputs, TYPES[dtype], form))
    with b.before(node):
        y = plugins.add(b, request, b.reshape(x, -1, inputs), *stack(b, weight, form, dtype))
        shape = b.concat(b.op("Shape", x, end=-1), b.constant([outputs]), axis=0)
        b.replace(node, b.op("Reshape", y, shape))
