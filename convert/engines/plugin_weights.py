"""Weights as plugins take them, packed in the order of their kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir
import torch

from llmc.convert.engines.plugins import TYPES
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import ChunkedTensor, WeightTensor, tensor_of
from llmc.convert.kernels import expert_weights
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.errors import InputError
from llmc.runtime.plugins.mixture_of_experts import ExpertWeights as Stored
from llmc.runtime.plugins.operation import InputSpec

_Part = Callable[[QuantizedWeight, Stored], torch.Tensor]


def stored_in_engine(weight: WeightTensor) -> Stored:
    """How a plugin's weights lie in an engine: decoded where its kernels do not know the codes. InputError for scales
    of a type that these do not read.
    """
    if weight.kind is None or weight.scales_dtype is None:
        return expert_weights.PLAIN
    columns = weight.checkpoint.shape(weight.names[0])[1]
    try:
        found = expert_weights.stored_as(weight.kind, columns, weight.scales_dtype)
    except InputError as error:
        raise InputError(f"{weight.names[0]}: {error}") from error
    return expert_weights.PLAIN if found is None else found


def stack(b: Rewriter, weight: WeightTensor, form: Stored, dtype: ir.DataType) -> list[ir.Value]:
    """[E, out, …], where E is 1 for a single matrix: what kernels know by codes and scales, others as numbers."""
    experts, (out, columns) = len(weight.names), weight.checkpoint.shape(weight.names[0])
    if form == expert_weights.PLAIN:

        def plain() -> Iterator[ir.TensorProtocol]:
            return (tensor_of(each, dtype) for each in weight.read())

        return [b.initializer(ChunkedTensor(plain, dtype, (experts, out, columns), f"{weight.name}.plain"))]

    def part(name: str, kind: ir.DataType, like: InputSpec, take: _Part) -> ir.Value:
        def pieces() -> Iterator[ir.TensorProtocol]:
            return (tensor_of(take(each, form), kind) for each in weight.stored_weights())

        shape = tuple(n for n in like.shape if n is not None)
        return b.initializer(ChunkedTensor(pieces, kind, shape, f"{weight.name}.{name}"))

    words, scales = form.inputs(experts, out, columns, TYPES[dtype])
    kinds = {kind: each for each, kind in TYPES.items()}
    return [
        part("words", ir.DataType.INT32, words, expert_weights.words),
        part("word_scales", kinds[form.scales], scales, expert_weights.scales),
    ]
