"""Target `onnx`: a portable graph, opset 24 and nothing else, with weights of its own beside it.

int4 weights are blocked DequantizeLinear of INT4 [in, out], FP8 weights the same of FLOAT8E4M3FN. The `llmc`
ops carry their meaning as functions in standard ops: any runtime that knows the opset can run the file. Of a quantized
embedding the rows of a step's tokens are decoded, from codes of its own where head and embedding are one matrix.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.build import graphs
from llmc.convert.graph.embedding import looked_up, quantized_lookups
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.graph.write import write
from llmc.convert.targets import Target, TargetResult, rounding_notes


class OnnxOptions(BaseModel, extra="forbid"):
    """This target has no options."""


class Onnx(Target[OnnxOptions]):
    name = "onnx"
    takes_negative_scales = True
    Options = OnnxOptions

    def build(
        self, checkpoint: Checkpoint, options: OnnxOptions, directory: Path, progress: ProgressFunction
    ) -> TargetResult:
        """Write onnx/portable.onnx, portable-mtp.onnx where there is an MTP layer, portable-vision.onnx where images
        are taken, and the weights of all.
        """
        models = graphs(checkpoint, images=True)
        for model in models.values():
            lower(model)
        files = {"main": "onnx/portable.onnx", "mtp": "onnx/portable-mtp.onnx", "vision": "onnx/portable-vision.onnx"}
        result = write(self.name, models, directory, files, partial(progress, "weights"))
        result.notes += rounding_notes(checkpoint)
        result.notes.append(
            "ONNX Runtime rounds the activations of int4 layers to int8, unless the session is configured with "
            "session.qdq_matmulnbits_accuracy_level=1"
        )
        return result


def lower(model: ir.Model) -> None:
    """Replace weights that are not stored as float32 by what is stored and the ops that decode it."""
    rewriter = Rewriter(model)
    for node, table in quantized_lookups(rewriter):
        with rewriter.before(node):
            rewriter.replace(node, looked_up(rewriter, table, node.inputs[1]))
    for value, weight in rewriter.weights():
        with rewriter.before(rewriter.first_use(value)):
            if weight.code_type is not None:
                decoded = dequantized(rewriter, weight)
            elif weight.dtype != weight.stored_dtype:
                decoded = rewriter.op("Cast", rewriter.initializer(weight.as_stored()), to=int(weight.dtype))
            else:
                continue
        value.replace_all_uses_with(decoded)
    rewriter.clean()


def dequantized(rewriter: Rewriter, weight: WeightTensor) -> ir.Value:
    """Codes and scales as they are stored: exact, and the product is taken in float32.

    128x128 FP8 blocks are blocks of 128 along the input axis whose scales repeat along the output axis: the
    standard op blocks one axis only, and the repeated scales are 3 % of the codes.
    """
    codes, scales = rewriter.initializer(weight.codes()), rewriter.initializer(weight.scales())
    zeros = [rewriter.initializer(weight.zeros())] if weight.has_zeros else []
    return rewriter.op(
        "DequantizeLinear", codes, scales, *zeros, axis=weight.layout.input_axis, block_size=weight.block[1]
    )


TARGET = Onnx()
