"""Adding nodes to a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from llmc.convert.spec import Activation, ClampedSwiGLU


class Nodes:
    """Adds nodes to the graph of a model or of a function.

    Every node is named `<path>/<op type>`, with a running number where that is taken; values are named after
    the node they come from.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.path = ""
        self._taken = {node.name for node in graph}
        self._numbers: Counter[str] = Counter()

    @contextmanager
    def at(self, path: str) -> Iterator[None]:
        """Within this context nodes are named after the module `path`."""
        outer, self.path = self.path, path
        yield
        self.path = outer

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Add one node; returns its output, or a tuple where `outputs` is more than one.

        An attribute may be given as an `ir.Attr`, which is how a function body refers to its own attributes.
        """
        name = self._name(_join(self.path, op_type))
        attrs = [_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node(domain, op_type, inputs, attrs, num_outputs=outputs, name=name)
        for i, output in enumerate(node.outputs):
            output.name = name if outputs == 1 else f"{name}:{i}"
        self.place(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def _name(self, wanted: str) -> str:
        name = wanted
        while name in self._taken:
            self._numbers[wanted] += 1
            name = f"{wanted}_{self._numbers[wanted] + 1}"
        self._taken.add(name)
        return name

    def place(self, node: ir.Node) -> None:
        """Where a new node goes: the end of the graph."""
        self.graph.append(node)

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The initializer named like `tensor`; an earlier one of that name is taken to be the same."""
        assert tensor.name is not None
        if tensor.name not in self.graph.initializers:
            shape = ir.Shape(tensor.shape.numpy())
            value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[tensor.name]

    def constant(self, value: float | Sequence[float], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A scalar, or a vector for a sequence."""
        array = np.array(value, dtype=dtype.numpy())
        return self.op("Constant", value=ir.Tensor(array, dtype=dtype))

    def cast_like(self, x: ir.Value, like: ir.Value) -> ir.Value:
        return self.op("CastLike", x, like)

    def reshape(self, x: ir.Value | None, *shape: int) -> ir.Value:
        """0 keeps a dimension, -1 infers it."""
        return self.op("Reshape", x, self.constant(shape))

    def transpose(self, x: ir.Value | None, *perm: int) -> ir.Value:
        return self.op("Transpose", x, perm=perm)

    def split(self, x: ir.Value, *sizes: int) -> tuple[ir.Value, ...]:
        """Along the last axis."""
        return self.op("Split", x, self.constant(sizes), axis=-1, outputs=len(sizes))

    def concat(self, *xs: ir.Value, axis: int = -1) -> ir.Value:
        return self.op("Concat", *xs, axis=axis)

    def dimension(self, x: ir.Value | None, axis: int) -> ir.Value:
        """The size of one axis, as a vector of one element."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def arange(self, length: ir.Value) -> ir.Value:
        """0 … length - 1, for a `length` as `dimension` returns it."""
        length = self.op("Squeeze", length)
        return self.op("Range", self.constant(0), length, self.constant(1))

    def silu(self, x: ir.Value) -> ir.Value:
        """X * sigmoid(x), spelled out: Swish-24 has no kernel in ONNX Runtime."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def gated(self, gate: ir.Value, up: ir.Value, activation: Activation) -> ir.Value:
        """What a gated MLP makes of the two, of one shape."""
        if not isinstance(activation, ClampedSwiGLU):
            active = self.silu(gate) if activation == "silu" else self.op("Gelu", gate, approximate="tanh")
            return self.op("Mul", active, up)
        low, high, one, alpha = (
            self.cast_like(self.constant(number, ir.DataType.FLOAT), gate)
            for number in (-activation.limit, activation.limit, 1.0, activation.alpha)
        )
        gate = self.op("Min", gate, high)
        up = self.op("Add", self.op("Max", self.op("Min", up, high), low), one)
        return self.op("Mul", up, self.op("Mul", gate, self.op("Sigmoid", self.op("Mul", gate, alpha))))


def _join(path: str, op_type: str) -> str:
    return f"{path}/{op_type}" if path else op_type


def _attribute(name: str, value: Any) -> ir.Attr:
    return value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(name, value)
