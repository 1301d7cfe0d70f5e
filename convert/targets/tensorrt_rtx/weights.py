"""Weights as TensorRT-RTX takes them: stored codes and scales, decoded where they are used."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import torch

from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import WeightTensor, tensor_of
from llmc.convert.quantised_weight import QuantisedWeight
from llmc.errors import InputError


def keeps_codes(weight: WeightTensor, fp8: bool) -> bool:
    """Whether the weight goes into the engine as stored codes rather than as plain floats.

    fp8: whether every GPU the engine is for knows FP8
    """
    return weight.code_type == "int4" or (weight.code_type == "float8_e4m3fn" and fp8)


def matrix(b: Rewriter, weight: WeightTensor, dtype: ir.DataType, fp8: bool, axis: int = 0) -> ir.Value:
    """The weight's modules, each [out, in] as in the checkpoint, joined along `axis`.

    Always two-dimensional and with `in` last: it is the one order in which the compiler fuses int4 into the
    product and also gathers single experts, so that both share one copy.
    """
    name = f"{weight.name}.{'rows' if axis == 0 else 'columns'}"
    out, columns = weight.checkpoint.shape(weight.names[0])
    count = len(weight.names)
    shape = ir.Shape((out * count, columns) if axis == 0 else (out, columns * count))
    if not keeps_codes(weight, fp8):

        def plain() -> ir.TensorProtocol:
            parts = [weight.checkpoint.tensor(each) for each in weight.names]
            return tensor_of(torch.cat(parts, axis), dtype, name)

        return b.initializer(ir.LazyTensor(plain, dtype, shape, name=name))

    def joined(
        part: str, dtype: ir.DataType, shape: ir.Shape, take: Callable[[QuantisedWeight], torch.Tensor]
    ) -> ir.Value:
        def read() -> ir.TensorProtocol:
            return tensor_of(
                torch.cat([take(_stored(weight, module)) for module in weight.modules], axis).reshape(
                    shape.numpy()
                ),
                dtype,
                f"{name}.{part}",
            )

        return b.initializer(ir.LazyTensor(read, dtype, shape, name=f"{name}.{part}"))

    # Edge blocks may be ragged; TensorRT's must not be.
    group = math.gcd(weight.block[1], columns)

    def scales(stored: QuantisedWeight) -> torch.Tensor:
        rows = stored.scales.repeat_interleave(stored.block[0], 0)[:out]
        return rows.repeat_interleave(stored.block[1] // group, 1)[:, : columns // group]

    int4 = weight.code_type == "int4"
    codes = joined(
        "codes", ir.DataType.INT4 if int4 else ir.DataType.FLOAT8E4M3FN, shape, lambda stored: stored.codes
    )
    # int4 is fused only with scales in the type of the product.
    scale_type = dtype if int4 else ir.DataType.FLOAT
    groups = shape[1] // group
    if groups == 1:
        scale = joined("scales", scale_type, ir.Shape((shape[0],)), scales)
        return b.op("DequantizeLinear", codes, scale, axis=0, output_dtype=int(dtype))
    scale = joined("scales", scale_type, ir.Shape((shape[0], groups)), scales)
    return b.op("DequantizeLinear", codes, scale, axis=1, block_size=group, output_dtype=int(dtype))


def _stored(weight: WeightTensor, module: str) -> QuantisedWeight:
    stored = weight.checkpoint.quantised(module)
    if stored is None or (stored.code_type, stored.block) != (weight.code_type, weight.block):
        raise InputError(f"{module}: not quantised the way {weight.modules[0]} is; they share one tensor")
    return stored


def decode_weights(b: Rewriter, dtype: ir.DataType, fp8: bool) -> None:
    """Replace every initialiser that is stored quantised by its codes and what decodes them."""
    for value, weight in b.weights():
        if not keeps_codes(weight, fp8) or not value.uses():
            continue
        with b.before(next(node for node in b.graph if value in node.inputs)):
            decoded = matrix(b, weight, dtype, fp8)
            layout = weight.layout
            if layout.heads is not None:
                decoded = b.reshape(decoded, layout.heads, -1, decoded_columns(weight))
                if layout.rows is not None:
                    start, stop = layout.rows
                    decoded = b.op("Slice", decoded, b.constant([start]), b.constant([stop]), b.constant([1]))
            if layout.transposed:
                order = list(range(2 if layout.heads is None else 3))
                order[-2:] = reversed(order[-2:])
                decoded = b.transpose(decoded, *order)
        value.replace_all_uses_with(decoded)


def decoded_columns(weight: WeightTensor) -> int:
    return weight.checkpoint.shape(weight.names[0])[1]
