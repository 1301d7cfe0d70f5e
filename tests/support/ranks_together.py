"""The graphs of all ranks as one, in which the sums and joins between them are standard operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from llmc.convert.graph.across_ranks import COLLECTIVE


def together(models: Sequence[ir.Model]) -> ir.Model:
    """Inputs and outputs are the first rank's, with the other ranks' caches besides. The models are used up."""
    first = models[0]
    every = [list(model.graph) for model in models]
    for rank, model in enumerate(models):
        graph = model.graph
        graph.remove(every[rank])
        if rank:
            _take_over(first.graph, graph, rank)
            _rename_functions(first, model, every[rank], f"rank{rank}")
            for node in every[rank]:
                node.name = f"{node.name}@{rank}"
                for output in node.outputs:
                    output.name = f"{output.name}@{rank}"
    for parts in zip(*map(_parts, every), strict=True):
        for part in parts:  # ranks of different sizes may hold their weights in different ways
            first.graph.extend([node for node in part if node.op_type != COLLECTIVE])
        nodes = [part[-1] for part in parts if part and part[-1].op_type == COLLECTIVE]
        if not nodes:
            continue
        assert len(nodes) == len(models)
        (operation,) = {node.attributes["collective_operation"].as_string() for node in nodes}
        inputs = [node.inputs[0] for node in nodes]
        assert nodes[0].attributes["nb_rank"].as_int() == len(models)
        axis = [ir.AttrInt64("axis", 0)] if operation == "all_gather" else []
        node = ir.Node("", "Concat" if axis else "Sum", inputs, axis, name=nodes[0].name)
        node.outputs[0].name = nodes[0].outputs[0].name
        first.graph.append(node)
        for each in nodes:
            each.outputs[0].replace_all_uses_with(node.outputs[0])
    return first


def _parts(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Each ends where ranks meet, but for the last."""
    found: list[list[ir.Node]] = [[]]
    for node in nodes:
        found[-1].append(node)
        if node.op_type == COLLECTIVE:
            found.append([])
    return found


def _take_over(graph: ir.Graph, other: ir.Graph, rank: int) -> None:
    """Inputs, outputs and weights of another rank's graph."""
    known = {value.name: value for value in graph.inputs}
    for value in list(other.inputs):
        if str(value.name).startswith("past."):
            value.name = f"{value.name}@{rank}"
            other.inputs.remove(value)
            graph.inputs.append(value)
        else:
            value.replace_all_uses_with(known[value.name])
    for value in list(other.outputs):
        if str(value.name).startswith("present."):
            other.outputs.remove(value)
            graph.outputs.append(value)  # named when its node is
    for value in list(other.initializers.values()):
        other.initializers.pop(str(value.name))
        assert value.const_value is not None
        value.name = value.const_value.name = f"{value.name}@{rank}"
        graph.register_initializer(value)


def _rename_functions(first: ir.Model, model: ir.Model, nodes: Sequence[ir.Node], domain: str) -> None:
    """Ranks may be of different sizes, and so may what their functions say."""
    for node in nodes:
        if node.op_identifier() in model.functions:
            node.domain = domain
    for function in model.functions.values():
        function.domain = domain
        first.functions[function.identifier()] = function
    first.graph.opset_imports[domain] = 1
