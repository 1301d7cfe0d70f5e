"""Quantized weights as ONNX Runtime's MatMulNBits and QMoE take them: blocks along the input channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from llmc.convert.bits import pack
from llmc.convert.graph.weight import ChunkedTensor, WeightTensor, tensor_of
from llmc.convert.quantized_weight import QuantizedWeight, bits_of
from llmc.convert.targets.onnxruntime.artifact_weights import FLOAT, ArtifactWeights

# For FP8 encoded anew in 8 bits: the smaller the block the closer to the original; 4 bytes of scale each.
BLOCK_8BIT = 32
_LEAST_BLOCK = 16  # of integers


@dataclass(frozen=True)
class NBits:
    """Weights that share bits and block size.

    Attributes:
        qweight: of each weight uint8 [..., out, in / block, block * bits / 8], zero being 2^(bits - 1)
        scales: of each weight float32 [..., out, in / block]
        zero_points: of each weight uint8 [..., out, ceil(in / block * bits / 8)]; None: all 2^(bits - 1)
    """

    bits: int
    block: int
    qweight: list[ir.Value]
    scales: list[ir.Value]
    zero_points: list[ir.Value] | None = None


def matmul_nbits(
    rewriter: ArtifactWeights,
    x: ir.Value | None,
    quantized: NBits,
    accuracy_level: int,
    rows: int,
    columns: int,
    bias: ir.Value | None = None,
) -> ir.Value:
    """X [..., columns] -> [..., rows], the output channels of all the weights one after the other."""

    def joined(parts: Sequence[ir.Value] | None) -> ir.Value | None:
        """ONNX Runtime does it once, while it loads the model."""
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else rewriter.concat(*parts, axis=0)

    y: ir.Value = rewriter.op(
        "MatMulNBits",
        *(x, joined(quantized.qweight), joined(quantized.scales), joined(quantized.zero_points)),
        *(None, bias),  # no order of channels
        domain="com.microsoft",
        N=rows,
        K=columns,
        bits=quantized.bits,
        block_size=quantized.block,
        accuracy_level=accuracy_level,
    )
    return y


def nbits(rewriter: ArtifactWeights, weights: Sequence[WeightTensor], accuracy_level: int) -> NBits | None:
    """The weights for one node, or None where its kernel cannot take them and they must be floats.

    Integers of 4 and 8 bits are taken as they lie in the artifact, where their format packs them as ONNX does; of 2 and
    3 bits they are written again in 4. FP8 is encoded anew, in 8 bits; FP4 is written again in 8, exactly. Not so at
    accuracy level 1: there is no exact 8-bit kernel.
    """
    kinds = {weight.kind for weight in weights}
    code_types = {weight.code_type for weight in weights}
    if code_types == {"float4_e2m1fn"} and len(kinds) == 1 and accuracy_level == 4:
        return doubled(rewriter, weights)
    if code_types <= {"float8_e4m3fn", "float4_e2m1fn"} and accuracy_level == 4:
        if any(weight.shape.numpy()[weight.layout.input_axis] % BLOCK_8BIT for weight in weights):
            return None
        return eight_bit(rewriter, weights)
    if code_types - {"int4", "int8"} or len(code_types) > 1 or len({kind.zero_points for kind in kinds if kind}) > 1:
        return None
    bits, block = _bits(weights[0]), _block(weights)
    if block < _LEAST_BLOCK or (bits == 8 and accuracy_level == 1):
        return None
    return NBits(
        bits,
        block,
        [_codes(rewriter, weight, bits, block) for weight in weights],
        [_scales(rewriter, weight, block) for weight in weights],
        [rewriter.initializer(_zeros(weight, bits, block)) for weight in weights] if weights[0].has_zeros else None,
    )


def gather_nbits(rewriter: ArtifactWeights, weight: WeightTensor, ids: ir.Value | None) -> ir.Value | None:
    """Rows of a table of integers, by the numbers `ids`: the bytes that MatMulNBits reads, in another shape. None where
    the kernel does not take the codes.
    """
    if weight.code_type not in ("int4", "int8"):
        return None
    bits, block = _bits(weight), _block([weight])
    if block < _LEAST_BLOCK:
        return None
    zeros = rewriter.initializer(_zeros(weight, bits, block)) if weight.has_zeros else None
    found: ir.Value = rewriter.op(
        "GatherBlockQuantized",
        *(_codes(rewriter, weight, bits, None), ids, _scales(rewriter, weight, block), zeros),
        domain="com.microsoft",
        gather_axis=0,
        quantize_axis=1,
        block_size=block,
        bits=bits,
    )
    return found


def _bits(weight: WeightTensor) -> int:
    return 4 if weight.code_type == "int4" else 8


def _block(weights: Sequence[WeightTensor]) -> int:
    """The kernels want one size, a power of two: a longer group is several blocks of one scale."""
    return math.gcd(256, *(weight.block[1] for weight in weights))


def _codes(rewriter: ArtifactWeights, weight: WeightTensor, bits: int, block: int | None) -> ir.Value:
    """Block by block; None: row by row."""
    rows, columns = weight.checkpoint.shape(weight.names[0])
    shape = (rows, columns * bits // 8) if block is None else (rows, columns // block, block * bits // 8)
    view = "rows" if block is None else "stored"
    if weight.kind is not None and bits_of(weight.kind.code_type) == bits and weight.row_major:
        return rewriter.stored_codes(weight, ir.DataType.UINT8, shape, view)

    def pieces() -> Iterator[ir.TensorProtocol]:
        for each in weight.stored_weights():
            yield tensor_of(pack(each.qweight, bits).view(torch.uint8), ir.DataType.UINT8)

    name = f"{weight.name}.{bits}bit" + ("" if block else ".rows")
    return rewriter.initializer(ChunkedTensor(pieces, ir.DataType.UINT8, (*weight.stack, *shape), name))


def _scales(rewriter: ArtifactWeights, weight: WeightTensor, block: int) -> ir.Value:
    if block == weight.block[1] and weight.row_major:
        return rewriter.scales(weight)
    rows, columns = weight.checkpoint.shape(weight.names[0])

    def pieces() -> Iterator[ir.TensorProtocol]:
        for each in weight.stored_weights():
            yield tensor_of(each.scales.float().repeat_interleave(weight.block[1] // block, 1), FLOAT)

    shape = (*weight.stack, rows, columns // block)
    return rewriter.initializer(ChunkedTensor(pieces, FLOAT, shape, f"{weight.name}.scales"))


def _zeros(weight: WeightTensor, bits: int, block: int) -> ChunkedTensor:
    rows, columns = weight.checkpoint.shape(weight.names[0])
    count = -(-columns // block * bits // 8)

    def pieces() -> Iterator[ir.TensorProtocol]:
        for each in weight.stored_weights():
            assert each.zero_points is not None
            packed = pack(each.zero_points.repeat_interleave(weight.block[1] // block, 1), bits)
            yield tensor_of(packed.view(torch.uint8)[:, :count].contiguous(), ir.DataType.UINT8)

    return ChunkedTensor(pieces, ir.DataType.UINT8, (*weight.stack, rows, count), f"{weight.name}.zeros")


def doubled(rewriter: ArtifactWeights, weights: Sequence[WeightTensor]) -> NBits:
    """FP4 weights of one kind: twice a value of E2M1 is an integer, of at most 12, and half a scale is exact."""
    block = weights[0].block[1]

    def part(weight: WeightTensor, dtype: ir.DataType, of: Callable[[QuantizedWeight], torch.Tensor]) -> ir.Value:
        def pieces() -> Iterator[ir.TensorProtocol]:
            return (tensor_of(of(each), dtype) for each in weight.stored_weights())

        rows, columns = weight.checkpoint.shape(weight.names[0])
        shape = (*weight.stack, rows, columns // block) + ((block,) if of is _doubled else ())
        return rewriter.initializer(ChunkedTensor(pieces, dtype, shape, f"{weight.name}.{of.__name__.strip('_')}"))

    codes = [part(weight, ir.DataType.UINT8, _doubled) for weight in weights]
    return NBits(8, block, codes, [part(weight, FLOAT, _half_scales) for weight in weights])


def _doubled(weight: QuantizedWeight) -> torch.Tensor:
    """Zero being 128."""
    return (weight.qweight.float() * 2 + 128).to(torch.uint8)


def _half_scales(weight: QuantizedWeight) -> torch.Tensor:
    return weight.scales.float() / 2


def eight_bit(rewriter: ArtifactWeights, weights: Sequence[WeightTensor]) -> NBits:
    """The weights, whatever they are stored as, encoded anew in 8 bits."""
    pairs = [_eight_bit(weight) for weight in weights]
    codes, scales = ([rewriter.initializer(part) for part in parts] for parts in zip(*pairs, strict=True))
    return NBits(8, BLOCK_8BIT, codes, scales)


def _eight_bit(weight: WeightTensor) -> tuple[ChunkedTensor, ChunkedTensor]:
    """Codes c and scales s of W = (c - 128) * s, with s the largest magnitude of a block / 127."""
    rows, columns = weight.checkpoint.shape(weight.names[0])
    shape = (*weight.stack, rows, columns // BLOCK_8BIT)

    def encoded() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for matrix in weight.read():
            blocks = matrix.unflatten(1, (-1, BLOCK_8BIT))
            scales = blocks.abs().amax(-1) / 127
            codes = (blocks / scales.clamp(min=torch.finfo().tiny)[..., None]).round() + 128
            yield codes.to(torch.uint8), scales

    uint8 = ir.DataType.UINT8
    name = f"{weight.name}.8bit"
    return (
        ChunkedTensor(lambda: (tensor_of(codes, uint8) for codes, _ in encoded()), uint8, (*shape, BLOCK_8BIT), name),
        ChunkedTensor(lambda: (tensor_of(scales, FLOAT) for _, scales in encoded()), FLOAT, shape, f"{name}.scales"),
    )
