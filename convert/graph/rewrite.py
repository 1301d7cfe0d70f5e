"""Replacing nodes of a finished graph: what every lowering is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from llmc.convert.graph.nodes import Nodes
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.tensor_names import ModuleName


class Rewriter(Nodes):
    """Adds nodes in front of an existing one and lets them take its place.

    for node in rewriter.nodes("MatMul"):
        with rewriter.before(node):
            rewriter.replace(node, rewriter.op("FusedMatMul", ...))
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model.graph)
        self.model = model
        self._anchor: ir.Node | None = None

    def nodes(self, op_type: str, domain: str = "") -> list[ir.Node]:
        """The nodes of one kind, as they are now, so that they may be replaced on the way."""
        return [node for node in self.graph if (node.op_type, node.domain) == (op_type, domain)]

    @contextmanager
    def before(self, node: ir.Node) -> Iterator[None]:
        """Within this context new nodes go in front of `node` and are named after its module."""
        outer, self._anchor = self._anchor, node
        with self.at((node.name or "").rpartition("/")[0]):
            yield
        self._anchor = outer

    def place(self, node: ir.Node) -> None:
        assert self._anchor is not None, "new nodes need a place: use `before`"
        self.graph.insert_before(self._anchor, node)

    def replace(self, node: ir.Node, *values: ir.Value) -> None:
        """Let `values` take the place of the node's outputs; a graph output keeps its name."""
        for old, new in zip(node.outputs, values, strict=True):
            if old.is_graph_output():
                new.name, old.name = old.name, None
                new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def weights(self) -> list[tuple[ir.Value, WeightTensor]]:
        """The initializers that are checkpoint weights and still in use."""
        found = [(value, weight_of(value)) for value in self.graph.initializers.values() if value.uses()]
        return [(value, weight) for value, weight in found if weight is not None]

    def first_use(self, value: ir.Value) -> ir.Node:
        users = set(value.consumers())
        return next(node for node in self.graph if node in users)

    def clean(self) -> None:
        """Drop the nodes, initializers, functions and domains that nothing uses any more."""
        for cleaning in (RemoveUnusedNodesPass(), RemoveUnusedFunctionsPass(), RemoveUnusedOpsetsPass()):
            cleaning(self.model)


def producer(value: ir.Value | None) -> ir.Node:
    """The node that `value` comes from."""
    node = value.producer() if value is not None else None
    assert node is not None
    return node


def weight_of(value: ir.Value | None) -> WeightTensor | None:
    """The checkpoint weight that `value` is, if it is one."""
    tensor = value.const_value if value is not None else None
    return tensor if isinstance(tensor, WeightTensor) else None


def layer_of(node: ir.Node) -> int:
    """The layer that a node, which is named after its module, belongs to."""
    layer = ModuleName.parse((node.name or "").rpartition("/")[0]).layer
    assert layer is not None, node.name
    return layer
