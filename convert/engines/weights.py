"""Weights as TensorRT takes them: stored codes and scales, decoded where they are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch

from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import CODE_TYPES, ChunkedTensor, WeightTensor, tensor_of
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.errors import InputError

# Groups of int4 that the compiler fuses into products: 32, 64 or 128. Others it decodes in each call.
_FUSED, _LEAST_FUSED = 128, 32
CODES_NAME = ".codes"  # what initializers of them end with, after the name of the weight


class EngineWeights:
    """Adds weights to a graph.

    Attributes:
        dtype: what they are decoded to
        code_types: those that every GPU of the engine knows; weights stored otherwise become plain ones of `dtype`
    """

    def __init__(self, b: Rewriter, dtype: ir.DataType, code_types: Collection[str]) -> None:
        self.b = b
        self.dtype = dtype
        self.code_types = code_types

    def keeps(self, weight: WeightTensor) -> bool:
        """Whether a weight stays in codes: the compiler knows no zero points, and fuses 8 bits by channels alone."""
        if weight.code_type == "int8" and in_groups(weight):
            return False
        return weight.code_type in self.code_types and not weight.has_zeros

    def matrix(self, name: str, like: WeightTensor, names: Sequence[str], axis: int = 0) -> ir.Value:
        """The checkpoint matrices `names`, each [out, in], joined along `axis`; all are stored like `like`.

        Always two-dimensional and with `in` last: in this order the compiler both fuses int4 into a product and
        gathers single experts, and so keeps one copy for the two.
        """
        checkpoint, (_, block) = like.checkpoint, like.block
        out, columns = checkpoint.shape(names[0])

        def joined(
            part: str, dtype: ir.DataType, shape: tuple[int, ...], read: Callable[[str], torch.Tensor]
        ) -> ir.Value:
            def pieces() -> Iterator[ir.TensorProtocol]:
                if axis == 0:  # one after the other
                    yield from (tensor_of(read(each), dtype) for each in names)
                else:
                    yield tensor_of(torch.cat([read(each) for each in names], axis), dtype)

            return self.b.initializer(ChunkedTensor(pieces, dtype, shape, name + part))

        rows, across = (out * len(names), 1) if axis == 0 else (out, len(names))
        if not self.keeps(like):
            return joined(".plain", self.dtype, (rows, columns * across), checkpoint.tensor)

        group = math.gcd(block, columns)  # edge blocks may be ragged, TensorRT's must not be
        if block > columns and like.code_type != "int4":
            group = columns  # several scales along a row would have its codes decoded
        if like.code_type == "int4" and (fused := math.gcd(group, _FUSED)) >= _LEAST_FUSED:
            group = fused  # scales of wider groups are repeated
            if group == columns * across >= 2 * _LEAST_FUSED:
                group //= 2  # those of a single group, too: with one scale for each output all codes would be decoded
        groups = columns // group * across

        def scales(each: str) -> torch.Tensor:
            weight = _stored(like, each)
            by_row = weight.scales.float().repeat_interleave(weight.block[0], 0)[:out]
            return by_row.repeat_interleave(block // group, 1)[:, : columns // group]

        # int4 is fused into a product only with scales in the type of that product.
        scale_type = self.dtype if like.code_type != "float8_e4m3fn" else ir.DataType.FLOAT
        scale = joined(".scales", scale_type, (rows,) if groups == 1 else (rows, groups), scales)
        codes = joined(
            CODES_NAME,
            CODE_TYPES[str(like.code_type)],
            (rows, columns * across),
            lambda each: _stored(like, each).qweight,
        )
        blocks: dict[str, Any] = {"axis": 0} if groups == 1 else {"axis": 1, "block_size": group}
        return self.b.op("DequantizeLinear", codes, scale, output_dtype=int(self.dtype), **blocks)

    def decode(self) -> None:
        """Replace every initializer that is stored as codes by the codes and what decodes them."""
        b = self.b
        for value, weight in b.weights():
            if not self.keeps(weight) or not value.uses():
                continue
            layout = weight.layout
            with b.before(next(node for node in b.graph if value in node.inputs)):
                # Two layouts of one matrix share its codes.
                decoded = self.matrix(weight.names[0], weight, weight.names)
                if layout.heads is not None:
                    decoded = b.reshape(decoded, layout.heads, -1, weight.checkpoint.shape(weight.names[0])[1])
                    decoded = b.op("Slice", decoded, *(b.constant([n]) for n in (*layout.rows, 1)))
                if layout.transposed:
                    decoded = b.transpose(decoded, *((1, 0) if layout.heads is None else (0, 2, 1)))
            value.replace_all_uses_with(decoded)


def in_groups(weight: WeightTensor) -> bool:
    """Whether several scales belong to the codes of one output channel."""
    return weight.block[1] < weight.checkpoint.shape(weight.names[0])[1]


def _stored(like: WeightTensor, name: str) -> QuantizedWeight:
    weight = like.checkpoint.quantized_tensor(name)
    if weight is None or weight.kind != like.kind:
        raise InputError(
            f"{name} is not quantized like {like.names[0]}, and an engine holds them in one tensor; "
            "let one line of the recipe's `quantize` match both"
        )
    return weight
