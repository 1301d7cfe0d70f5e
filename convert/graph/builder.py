"""Appending nodes to a graph: names follow the module path, constants are nodes, weights are lazy initialisers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.weight import Layout, WeightTensor

OPSET = 24
DOMAIN = "llmc"


class Nodes:
    """Adds nodes to the graph of a model or of a function.

    Every node is named `<path>/<op type>`, with a running number where that is taken.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.path = ""
        self._names: Counter[str] = Counter()

    @contextmanager
    def at(self, path: str) -> Iterator[None]:
        """Within this context nodes are named after the module `path`."""
        outer, self.path = self.path, path
        yield
        self.path = outer

    def op(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """Append one node; returns its output, or a tuple where `outputs` is more than one.

        An attribute may be given as an `ir.Attr`, which is how a function body refers to its own attributes.
        """
        name = f"{self.path}/{op_type}" if self.path else op_type
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name}_{self._names[name]}"
        attrs = [_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node(domain, op_type, inputs, attrs, num_outputs=outputs, name=name)
        for i, output in enumerate(node.outputs):
            output.name = name if outputs == 1 else f"{name}:{i}"
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def constant(self, value: float | Sequence[float], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A scalar, or a vector for a sequence."""
        array = np.array(value, dtype=dtype.numpy())
        output = self.op("Constant", value=ir.Tensor(array, dtype=dtype))
        output.shape, output.dtype = ir.Shape(array.shape), dtype
        return output

    def cast_like(self, x: ir.Value, like: ir.Value) -> ir.Value:
        return self.op("CastLike", x, like)

    def reshape(self, x: ir.Value, *shape: int) -> ir.Value:
        """0 keeps a dimension, -1 infers it."""
        return self.op("Reshape", x, self.constant(shape))

    def transpose(self, x: ir.Value, *perm: int) -> ir.Value:
        return self.op("Transpose", x, perm=perm)

    def split(self, x: ir.Value, *sizes: int) -> tuple[ir.Value, ...]:
        """Along the last axis."""
        return self.op("Split", x, self.constant(sizes), axis=-1, outputs=len(sizes))

    def concat(self, *xs: ir.Value) -> ir.Value:
        """Along the last axis."""
        return self.op("Concat", *xs, axis=-1)

    def dimension(self, x: ir.Value, axis: int) -> ir.Value:
        """The size of one axis, as a vector of one element."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def arange(self, length: ir.Value) -> ir.Value:
        """0 … length - 1, for a `length` as `dimension` returns it."""
        length = self.op("Squeeze", length)
        return self.op("Range", self.constant(0), length, self.constant(1))

    def silu(self, x: ir.Value) -> ir.Value:
        """x * sigmoid(x), spelled out: Swish-24 has no kernel in ONNX Runtime."""
        return self.op("Mul", x, self.op("Sigmoid", x))


class GraphBuilder(Nodes):
    """The graph of a whole model. `dtype` is that of activations, weights, caches and mask."""

    def __init__(self, checkpoint: Checkpoint, name: str, dtype: ir.DataType) -> None:
        super().__init__(ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, DOMAIN: 1}))
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.dtype = dtype
        self.functions: dict[str, ir.Function] = {}

    def input(self, name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, *shape: int | str) -> None:
        value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)
        self.graph.outputs.append(value)

    def cast(self, x: ir.Value, dtype: ir.DataType, source: ir.DataType | None = None) -> ir.Value:
        """`x`, whose type is `source` (the graph's own if not given), as `dtype`."""
        return x if dtype == (source or self.dtype) else self.op("Cast", x, to=int(dtype))

    def weight(
        self,
        names: str | Sequence[str],
        layout: Layout,
        *,
        name: str | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """The initialiser that holds the checkpoint tensors `names`; one per graph, however often asked for."""
        names = (names,) if isinstance(names, str) else tuple(names)
        name = name or names[0]
        if name not in self.graph.initializers:
            tensor = WeightTensor(self.checkpoint, names, layout, name, dtype or self.dtype)
            value = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
            )
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def linear(self, x: ir.Value, module: str) -> ir.Value:
        """[..., in] -> [..., out], with the bias if the checkpoint has one."""
        y = self.op("MatMul", x, self.weight(f"{module}.weight", Layout()))
        if f"{module}.bias" in self.checkpoint:
            y = self.op("Add", y, self.weight(f"{module}.bias", Layout(transposed=False)))
        return y

    def call(self, function: ir.Function, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> Any:
        """A node of domain `llmc`; its function becomes part of the model."""
        self.functions.setdefault(function.name, function)
        return self.op(function.name, *inputs, domain=DOMAIN, outputs=outputs, **attributes)

    def model(self) -> ir.Model:
        return ir.Model(
            self.graph, ir_version=11, producer_name="llmc", functions=list(self.functions.values())
        )


class FunctionBuilder(Nodes):
    """The body of an `llmc` function: standard ops only, no initialisers, types left to the inputs."""

    def __init__(self, name: str, inputs: Sequence[str], attributes: dict[str, ir.AttributeType]) -> None:
        values = [ir.Value(name=i) for i in inputs]
        super().__init__(ir.Graph(values, [], nodes=[], name=name, opset_imports={"": OPSET}))
        self.inputs = values
        self._attributes = attributes

    def attribute(self, name: str) -> ir.Value:
        """The value of an INT or FLOAT attribute of the function, as a scalar."""
        kind = self._attributes[name]
        return self.op(
            "Constant", **{f"value_{kind.name.lower()}": ir.RefAttr(f"value_{kind.name.lower()}", name, kind)}
        )

    def function(self, *outputs: ir.Value) -> ir.Function:
        self.graph.outputs.extend(outputs)
        attributes = [ir.Attr(name, kind, None) for name, kind in self._attributes.items()]
        return ir.Function(DOMAIN, self.graph.name or "", graph=self.graph, attributes=attributes)


def _attribute(name: str, value: Any) -> ir.Attr:
    return value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(name, value)
