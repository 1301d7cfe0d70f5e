"""Quantised weights as ONNX Runtime's MatMulNBits and QMoE take them: blocks along the input channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from llmc.convert.graph.weight import Pieces, WeightTensor, tensor_of
from llmc.convert.targets.onnxruntime.artifact_weights import FLOAT, ArtifactWeights

# For FP8 encoded anew in 8 bits: the smaller the block the closer to the original; 4 bytes of scale each.
BLOCK_8BIT = 32


@dataclass(frozen=True)
class NBits:
    """Weights that share bits and block size.

    codes:  of each weight uint8 [..., out, in / block, block * bits / 8], zero being 2^(bits - 1)
    scales: of each weight float32 [..., out, in / block]
    """

    bits: int
    block: int
    codes: list[ir.Value]
    scales: list[ir.Value]


def nbits(rewriter: ArtifactWeights, weights: Sequence[WeightTensor], accuracy_level: int) -> NBits | None:
    """The weights for one node, or None where its kernel cannot take them and they must be floats.

    int4 is taken as it lies in the artifact, in the layout of compressed-tensors' `weight_packed`. FP8 is
    encoded anew, in 8 bits, but not at accuracy level 1: there is no exact 8-bit kernel.
    """
    kinds = {weight.code_type for weight in weights}
    blocks = {weight.block[1] for weight in weights}
    block = min(blocks)
    if kinds == {"int4"} and blocks == {block} and block >= 16 and block & (block - 1) == 0:
        codes = []
        for weight in weights:
            rows, columns = weight.checkpoint.shape(weight.names[0])
            shape = (rows, columns // block, block // 2)
            codes.append(rewriter.stored(weight, "weight_packed", ir.DataType.UINT8, shape))
        return NBits(4, block, codes, [rewriter.scales(weight) for weight in weights])
    whole = all(weight.shape.numpy()[weight.layout.input_axis] % BLOCK_8BIT == 0 for weight in weights)
    if kinds == {"float8_e4m3fn"} and whole and accuracy_level == 4:
        pairs = [_eight_bit(weight) for weight in weights]
        codes, scales = ([rewriter.initializer(part) for part in parts] for parts in zip(*pairs, strict=True))
        return NBits(8, BLOCK_8BIT, codes, scales)
    return None


def _eight_bit(weight: WeightTensor) -> tuple[Pieces, Pieces]:
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
        Pieces(lambda: (tensor_of(codes, uint8) for codes, _ in encoded()), uint8, (*shape, BLOCK_8BIT), name),
        Pieces(lambda: (tensor_of(scales, FLOAT) for _, scales in encoded()), FLOAT, shape, f"{name}.scales"),
    )
