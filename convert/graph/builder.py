"""Building the graph of a model and the bodies of its functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.nodes import Nodes
from llmc.convert.graph.weight import WeightTensor, WeightView

OPSET = 24
DOMAIN = "llmc"


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

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, *shape: int | str | ir.SymbolicDim) -> None:
        value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)
        self.graph.outputs.append(value)

    def cast(self, x: ir.Value, dtype: ir.DataType, source: ir.DataType | None = None) -> ir.Value:
        """`x`, whose type is `source` (the graph's own if not given), as `dtype`."""
        return x if dtype == (source or self.dtype) else self.op("Cast", x, to=int(dtype))

    def weight(
        self,
        names: str | Sequence[str],
        layout: WeightView,
        *,
        name: str | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """The initializer made of the checkpoint tensors `names`; asked for twice, it is the same one."""
        names = (names,) if isinstance(names, str) else tuple(names)
        tensor = WeightTensor(self.checkpoint, names, layout, name or names[0], dtype or self.dtype)
        return self.initializer(tensor)

    def call(self, function: ir.Function, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> Any:
        """A node of domain `llmc`; its function becomes part of the model."""
        self.functions.setdefault(function.name, function)
        return self.op(function.name, *inputs, domain=DOMAIN, outputs=outputs, **attributes)

    def model(self) -> ir.Model:
        return ir.Model(self.graph, ir_version=11, producer_name="llmc", functions=list(self.functions.values()))


class FunctionBuilder(Nodes):
    """The body of an `llmc` function: standard ops only, no initializers, types left to the inputs."""

    def __init__(self, name: str, inputs: Sequence[str], attributes: dict[str, ir.AttributeType]) -> None:
        values = [ir.Value(name=i) for i in inputs]
        super().__init__(ir.Graph(values, [], nodes=[], name=name, opset_imports={"": OPSET}))
        self.inputs = values
        self._attributes = attributes

    def attribute(self, name: str) -> ir.Value:
        """The value of an INT or FLOAT attribute of the function, as a scalar."""
        kind = self._attributes[name]
        key = f"value_{kind.name.lower()}"
        reference: dict[str, Any] = {key: ir.RefAttr(key, name, kind)}
        return self.op("Constant", **reference)

    def function(self, *outputs: ir.Value) -> ir.Function:
        self.graph.outputs.extend(outputs)
        attributes = [ir.Attr(name, kind, None) for name, kind in self._attributes.items()]
        return ir.Function(DOMAIN, self.graph.name or "", graph=self.graph, attributes=attributes)
