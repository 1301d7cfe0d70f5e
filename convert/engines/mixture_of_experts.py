"""Mixture of experts: one plugin, which computes the chosen experts alone; or, without plugins, the chosen ones are
gathered when decoding, and all of them are computed when prefilling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from llmc.convert.engines.phases import Phases
from llmc.convert.engines.plugin_weights import stack, stored_in_engine
from llmc.convert.engines.plugins import TYPES, Plugins
from llmc.convert.engines.weights import EngineWeights
from llmc.convert.graph.rewrite import Rewriter, producer, weight_of
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.spec import Activation, ClampedSwiGLU
from llmc.errors import InputError
from llmc.runtime.plugins.mixture_of_experts import ExpertsShape


def mixture_of_experts_plugin(
    b: Rewriter, node: ir.Node, activation: Activation, dtype: ir.DataType, plugins: Plugins
) -> None:
    """Replace `llmc.MixtureOfExperts` by the plugin of that name, which takes weights in the order of its kernels."""
    (x, index, share), (gate, up, down), biases = _operands(node)
    top_k = producer(index).attributes["top_k"].as_int()
    experts, hidden, inner = gate.shape.numpy()
    of_gate, of_down = stored_in_engine(gate), stored_in_engine(down)
    if stored_in_engine(up) != of_gate:
        raise InputError(
            f"{up.names[0]} is not quantized like {gate.names[0]}, and their kernel takes both alike; "
            "let one line of the recipe's `quantize` match both"
        )
    kind = TYPES[dtype]
    shape = ExpertsShape(experts, top_k, hidden, inner, kind, kind, of_gate, of_down, bool(biases))
    if isinstance(activation, ClampedSwiGLU):
        shape = replace(shape, alpha=activation.alpha, limit=activation.limit)
    stacks = [*stack(b, gate, of_gate, dtype), *stack(b, up, of_gate, dtype), *stack(b, down, of_down, dtype)]
    with b.before(node):
        b.replace(node, plugins.add(b, KernelRequest("MixtureOfExperts", shape), x, index, share, *stacks, *biases))


def mixture_of_experts(
    b: Rewriter, node: ir.Node, activation: Activation, weights: EngineWeights, phases: Phases, batch: int
) -> None:
    """Replace `llmc.MixtureOfExperts`; `batch` is the most rows of a step."""
    (x, index, share), (gate, up, down), biases = _operands(node)
    assert up.name and down.name
    top_k = producer(index).attributes["top_k"].as_int()
    experts, hidden, inner = gate.shape.numpy()
    with b.before(node):
        # Each expert's gate and up lie together. Left apart, the compiler joins them for the product over all
        # experts but not for gathering, and the engine holds them twice.
        pairs = [name for pair in zip(gate.names, up.names, strict=True) for name in pair]
        narrow = gathering_widths(phases.widths, batch, top_k, experts)
        gathered = len(narrow) == len(phases.widths)
        gate_up = weights.matrix(up.name.replace("up_proj", "gate_up_proj"), gate, pairs, gathered=gathered)
        all_down = weights.matrix(down.name, down, down.names, axis=1, gathered=gathered)
        bias = (b.concat(*biases[:2], axis=1), biases[2]) if biases else None
        stacks = _Stacks(b, gate_up, all_down, experts, hidden, inner, activation, bias)
        if not narrow:
            b.replace(node, stacks.all(x, index, share))
            return
        parts = (phases.split(value, 0, max(narrow)) for value in (x, index, share))
        decode, prefill = zip(*parts, strict=True)
        b.replace(node, b.concat(stacks.chosen(*decode), stacks.all(*prefill), axis=0))


def _operands(
    node: ir.Node,
) -> tuple[tuple[ir.Value, ir.Value, ir.Value], tuple[WeightTensor, WeightTensor, WeightTensor], list[ir.Value]]:
    """Of `llmc.MixtureOfExperts`: x, index and share; gate, up and down; their biases, if there are any."""
    x, index, share = node.inputs[:3]
    gate, up, down = (weight_of(value) for value in node.inputs[3:6])
    assert x and index and share and gate and up and down
    return (x, index, share), (gate, up, down), [value for value in node.inputs[6:] if value is not None]


def gathering_widths(widths: Sequence[int], batch: int, top_k: int, experts: int) -> list[int]:
    """The decode widths at which experts are gathered.

    Gathering makes a matrix for each token and choice: more than there are experts cost more than all of them.
    """
    return [width for width in widths if batch * width * top_k <= experts]


@dataclass(frozen=True)
class _Stacks:
    """The experts' weights, and x [N, H], index and share [N, K] -> [N, H] in two forms."""

    b: Rewriter
    gate_up: ir.Value  # [E * 2 I, H]
    down: ir.Value  # [H, E * I]
    experts: int
    hidden: int
    inner: int
    activation: Activation = "silu"
    bias: tuple[ir.Value, ir.Value] | None = None  # of gate and up together [E, 2 I], of down [E, H]

    def chosen(self, x: ir.Value, index: ir.Value, share: ir.Value) -> ir.Value:
        """Codes are decoded after the choice, in one kernel with it: only the chosen experts are read."""
        b = self.b
        gate_up = b.reshape(self.gate_up, self.experts, 2 * self.inner, self.hidden)
        gate_up = b.transpose(b.op("Gather", gate_up, index, axis=0), 0, 1, 3, 2)  # [N, K, H, 2 I]
        both = b.op("MatMul", b.op("Unsqueeze", x, b.constant([1, 2])), gate_up)
        if self.bias:
            both = b.op("Add", both, b.op("Unsqueeze", b.op("Gather", self.bias[0], index, axis=0), b.constant([2])))
        middle = self._gated(both)
        middle = b.op("Mul", middle, b.op("Unsqueeze", share, b.constant([2, 3])))  # [N, K, 1, I]
        down = b.reshape(self.down, self.hidden, self.experts, self.inner)
        down = b.transpose(b.op("Gather", down, index, axis=1), 1, 2, 3, 0)  # [N, K, I, H]
        outer = b.op("MatMul", middle, down)
        if self.bias:
            added = b.op("Mul", b.op("Gather", self.bias[1], index, axis=0), b.op("Unsqueeze", share, b.constant([2])))
            outer = b.op("Add", outer, b.op("Unsqueeze", added, b.constant([2])))
        return b.op("ReduceSum", outer, b.constant([1, 2]), keepdims=0)

    def all(self, x: ir.Value, index: ir.Value, share: ir.Value) -> ir.Value:
        """Two products over all experts side by side; what was not chosen is weighed with zero in between."""
        b = self.b
        ids, last = b.constant(range(self.experts)), b.constant([2])
        chosen = b.cast_like(b.op("Equal", b.op("Unsqueeze", index, last), ids), share)
        shares = b.op("ReduceSum", b.op("Mul", chosen, b.op("Unsqueeze", share, last)), b.constant([1]), keepdims=0)
        both = b.op("MatMul", x, b.transpose(self.gate_up, 1, 0))
        if self.bias:
            both = b.op("Add", both, b.reshape(self.bias[0], -1))
        shape = b.concat(b.op("Shape", shares), b.constant([2 * self.inner]))
        middle = self._gated(b.op("Reshape", both, shape, allowzero=1))  # [N, E, I]
        middle = b.op("Mul", middle, b.op("Unsqueeze", shares, last))
        shape = b.concat(b.dimension(x, 0), b.constant([self.experts * self.inner]))
        y = b.op("MatMul", b.op("Reshape", middle, shape, allowzero=1), b.transpose(self.down, 1, 0))
        return b.op("Add", y, b.op("MatMul", shares, self.bias[1])) if self.bias else y

    def _gated(self, both: ir.Value) -> ir.Value:
        gate, up = self.b.split(both, self.inner, self.inner)
        return self.b.gated(gate, up, self.activation)
