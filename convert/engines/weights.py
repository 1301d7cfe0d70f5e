"""Weights as TensorRT takes them: stored codes and scales, decoded where they are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum, auto
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from llmc.convert.graph.build import EMBEDDING
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import CODE_TYPES, ChunkedTensor, WeightTensor, WeightView, tensor_of
from llmc.convert.kernels.expert_weights import stored_as
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec, held_type
from llmc.errors import InputError

# Groups of int4 that the compiler fuses into products: 32, 64 or 128. Others it decodes in each call.
_FUSED, _LEAST_FUSED = 128, 32
_EIGHT_BITS = ("int8", "float8_e4m3fn")
_TABLE = WeightView(transposed=False)
CODES_NAME = ".codes"  # what initializers of them end with, after the name of the weight


class Held(Enum):
    """What a quantized weight is in an engine.

    Attributes:
        CODES: what the compiler multiplies by as they are, or gathers by experts
        PLUGIN: codes that a plugin multiplies by
        PLAIN: floats of the type of activations
    """

    CODES = auto()
    PLUGIN = auto()
    PLAIN = auto()


def held(
    kind: QuantSpec,
    shape: tuple[int, int],
    code_types: Collection[str],
    plugins: bool,
    *,
    stacked: bool = False,
    by_heads: bool = False,
    gathered: bool = False,
    looked_up: bool = False,
) -> Held:
    """Of a matrix [out, in] of this shape: as whatever is read the least for it in a step that decodes.

    Codes that the compiler decodes are read, written as bfloat16, and read again: 5 bytes of traffic for a weight of 8
    bits, 4.5 for one of 4. A plugin, or a product that it fuses with decoding, reads 1 or 0.5, and bfloat16 is 2.

    Args:
        code_types: those that every GPU of the engine knows
        stacked: of experts, which are one plugin's, or the chosen of which are `gathered` in steps that decode: their
            codes are decoded by the way
        by_heads: multiplied over heads, as no compiler or plugin does with codes
        looked_up: rows of an embedding, of which every step decodes those of its tokens
    """
    rows, columns = shape
    in_plugin = plugins and stored_as(kind, columns, torch.float32) is not None
    if by_heads:
        return Held.PLAIN
    if stacked and plugins:
        return Held.PLUGIN if in_plugin else Held.PLAIN
    code_type = held_type(kind.code_type)
    known = code_type in code_types
    known &= not (kind.zero_points or kind.g_idx)
    if looked_up:
        return Held.CODES if known else Held.PLAIN
    picked = gathered and (code_type != "int8" or kind.block[1] >= columns)
    # Of 8 bits, experts side by side in one product are decoded: gate_up with what the compiler joins it with, down as
    # it has a scale for each of them in a row.
    if known and (picked or (_multiplied(kind, rows, columns) and not (stacked and code_type in _EIGHT_BITS))):
        return Held.CODES
    return Held.PLUGIN if in_plugin else Held.PLAIN


def _multiplied(kind: QuantSpec, rows: int, columns: int) -> bool:
    """Whether the compiler fuses decoding into a product: of 8 bits by channels, of 4 in two groups or more; never into
    one with an odd number of inputs or outputs.
    """
    if rows % 2 or columns % 2:
        return False
    if held_type(kind.code_type) in _EIGHT_BITS:
        return kind.block[1] >= columns
    return math.gcd(kind.block[1], columns, _FUSED) >= _LEAST_FUSED and columns >= 2 * _LEAST_FUSED


def held_weight(
    weight: WeightTensor, code_types: Collection[str], plugins: bool, gathered: bool = False
) -> Held | None:
    """The same of a weight; None if it is not quantized."""
    if weight.kind is None:
        return None
    layout, (rows, columns) = weight.layout, weight.checkpoint.shape(weight.names[0])
    find = partial(held, weight.kind, (rows, columns), code_types, plugins and weight.scales_dtype is not None)
    if is_looked_up(weight):
        # The head may be the same matrix, and be there as floats: once is enough.
        shared = weight.checkpoint.spec.tie_word_embeddings and find() == Held.PLAIN
        return Held.PLAIN if shared else find(looked_up=True)
    return find(stacked=layout.stacked, by_heads=layout.heads is not None, gathered=gathered)


def is_looked_up(weight: WeightTensor) -> bool:
    """Whether it is an embedding, and no factor of a product."""
    return weight.names == (EMBEDDING,) and not weight.layout.transposed


class EngineWeights:
    """Adds weights to a graph.

    Attributes:
        dtype: what they are decoded to
        plugins: whether there are to be some
        code_types: those that every GPU of the engine knows; weights stored otherwise become plain ones of `dtype`
    """

    def __init__(self, b: Rewriter, dtype: ir.DataType, code_types: Collection[str], plugins: bool) -> None:
        self.b = b
        self.dtype = dtype
        self.code_types = code_types
        self.plugins = plugins

    def held(self, weight: WeightTensor, gathered: bool = False) -> Held | None:
        """See `held`."""
        return held_weight(weight, self.code_types, self.plugins, gathered)

    def matrix(
        self, name: str, like: WeightTensor, names: Sequence[str], axis: int = 0, gathered: bool = False
    ) -> ir.Value:
        """The checkpoint matrices `names`, each [out, in], joined along `axis`; all are stored like `like`.

        Always two-dimensional and with `in` last: in this order the compiler both fuses int4 into a product and
        gathers single experts, and so keeps one copy for the two. gathered: whether all steps that decode do that.
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
        if self.held(like, gathered) != Held.CODES:
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
            layout, found = weight.layout, self.held(weight)
            is_tied_head = weight.names == (EMBEDDING,) and layout.transposed
            if not value.uses() or not (found == Held.CODES or (found == Held.PLAIN and is_tied_head)):
                continue
            with b.before(b.first_use(value)):
                if found == Held.CODES:
                    decoded = self.matrix(weight.names[0], weight, weight.names)
                else:  # the table that rows are looked up in
                    decoded = b.initializer(
                        WeightTensor(weight.checkpoint, weight.names, _TABLE, EMBEDDING, self.dtype)
                    )
                if layout.transposed:
                    decoded = b.transpose(decoded, 1, 0)
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
