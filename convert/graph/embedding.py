"""Rows of a quantized embedding, decoded in standard ops: codes and scales of the tokens at hand, and no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import torch

from llmc.convert.bits import pack
from llmc.convert.graph.rewrite import Rewriter, weight_of
from llmc.convert.graph.weight import ChunkedTensor, WeightTensor, tensor_of
from llmc.convert.quantized_weight import QuantizedWeight

_FLOAT, _INT8, _UINT8 = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8
_NIBBLE = 4


def quantized_lookups(rewriter: Rewriter) -> list[tuple[ir.Node, WeightTensor]]:
    """The nodes that gather rows of a table whose codes are known, and that table."""
    found = [(node, weight_of(node.inputs[0])) for node in rewriter.nodes("Gather")]
    return [(node, weight) for node, weight in found if weight is not None and weight.code_type is not None]


def looked_up(b: Rewriter, weight: WeightTensor, ids: ir.Value | None, codes: ir.Value | None = None) -> ir.Value:
    """float32 [..., H] of the tokens `ids` [...]: `(code - zero) * scale`, exact.

    Args:
        codes: [V, H] of FP8 as the bytes of UINT8, if they lie somewhere; None: they are written
    """
    columns = weight.checkpoint.shape(weight.names[0])[1]
    group = math.gcd(weight.block[1], columns)  # of edge blocks, which may be ragged, too
    values = _code_values(b, weight, ids, codes, columns)
    if weight.has_zeros:
        values = b.op("Sub", _by_group(b, values, group), _of_rows(b, weight, ids, "zero_points", _INT8, group))
    scaled = b.op("Mul", _by_group(b, values, group), _of_rows(b, weight, ids, "scales", _FLOAT, group))
    found: ir.Value = b.op("Reshape", scaled, b.concat(b.op("Shape", ids), b.constant([columns]), axis=0))
    return found


def _code_values(
    b: Rewriter, weight: WeightTensor, ids: ir.Value | None, codes: ir.Value | None, columns: int
) -> ir.Value:
    """[..., H], float32; of 4-bit integers two lie in a byte, and those and 8-bit floats are no numbers to gather."""

    def part(name: str, dtype: ir.DataType, width: int, take: Callable[[QuantizedWeight], torch.Tensor]) -> ir.Value:
        rows = weight.checkpoint.shape(weight.names[0])[0]
        pieces = _pieces(weight, dtype, take)
        return b.initializer(ChunkedTensor(pieces, dtype, (rows, width), f"{weight.name}.{name}"))

    if weight.code_type == "int8":
        table = part("rows", _INT8, columns, lambda each: each.qweight)
        return b.op("Cast", b.op("Gather", table, ids), to=int(_FLOAT))
    if weight.code_type == "int4":
        # Stored is c + 8, low nibble first; a row of an odd number of codes has a nibble more.
        width = -(-columns // 2)
        table = part("rows", _UINT8, width, lambda each: pack(each.qweight, _NIBBLE).view(torch.uint8)[:, :width])
        found = b.op("Gather", table, ids)
        low = b.op("BitwiseAnd", found, b.constant(15, _UINT8))
        high = b.op("BitShift", found, b.constant(_NIBBLE, _UINT8), direction="RIGHT")
        last = b.constant([-1])
        pairs = b.concat(b.op("Unsqueeze", low, last), b.op("Unsqueeze", high, last))
        steps = b.op("Reshape", pairs, b.concat(b.op("Shape", ids), b.constant([2 * width]), axis=0))
        steps = b.op("Sub", b.op("Cast", steps, to=int(_FLOAT)), b.constant(8.0, _FLOAT))
        if columns % 2:
            steps = b.op("Slice", steps, b.constant([0]), b.constant([columns]), last)
        return steps
    table = codes or part("rows", _UINT8, columns, lambda each: each.qweight.view(torch.uint8))
    every = torch.arange(256).byte().view(torch.float8_e4m3fn).float()
    values = b.op("Constant", value=ir.Tensor(every.numpy().astype(np.float32), dtype=_FLOAT))
    found = b.op("Cast", b.op("Gather", table, ids), to=int(ir.DataType.INT32))
    return b.op("Gather", values, found)


def _by_group(b: Rewriter, x: ir.Value, group: int) -> ir.Value:
    """[..., G, group], or a view of the same of what is so already."""
    tail = b.concat(b.op("Shape", x, end=2), b.constant([-1, group]), axis=0)
    return b.op("Reshape", x, tail)


def _of_rows(
    b: Rewriter, weight: WeightTensor, ids: ir.Value | None, name: str, dtype: ir.DataType, group: int
) -> ir.Value:
    """[..., G, 1], float32: what the rows of the tokens have for each group."""
    rows, columns = weight.checkpoint.shape(weight.names[0])
    high, wide = weight.block

    def take(each: QuantizedWeight) -> torch.Tensor:
        blockwise = getattr(each, name).to(torch.int8 if dtype == _INT8 else torch.float32)
        by_row = blockwise.repeat_interleave(high, 0)[:rows]
        return by_row.repeat_interleave(-(-wide // group), 1)[:, : columns // group]

    pieces = _pieces(weight, dtype, take)
    table = b.initializer(ChunkedTensor(pieces, dtype, (rows, columns // group), f"{weight.name}.row_{name}"))
    found = b.op("Unsqueeze", b.op("Gather", table, ids), b.constant([-1]))
    return found if dtype == _FLOAT else b.op("Cast", found, to=int(_FLOAT))


def _pieces(
    weight: WeightTensor, dtype: ir.DataType, take: Callable[[QuantizedWeight], torch.Tensor]
) -> Callable[[], Iterator[ir.TensorProtocol]]:
    return lambda: (tensor_of(take(each).contiguous(), dtype) for each in weight.stored_weights())
