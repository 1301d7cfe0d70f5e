"""Target `onnxruntime`: graphs for ONNX Runtime's CPU kernels, with the checkpoint's own files as weights.

The graphs hold no copy of what the safetensors store: initialisers point into them (`artifact_weights`). All
lie in one folder, because ONNX Runtime refuses external data outside the folder of the model. Only what it
cannot use as stored, FP8 at accuracy level 4, is written again, to model.onnx.data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx_ir as ir
from pydantic import BaseModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.build import graphs
from llmc.convert.graph.write import write
from llmc.convert.spec import GroupedQueryAttentionSpec, ModelSpec
from llmc.convert.targets import Progress, TargetResult, rounding_notes
from llmc.convert.targets.onnxruntime.artifact_weights import ArtifactWeights
from llmc.convert.targets.onnxruntime.grouped_query_attention import lower_grouped_query_attention
from llmc.convert.targets.onnxruntime.linear import lower_linears
from llmc.convert.targets.onnxruntime.mixture_of_experts import lower_mixture_of_experts
from llmc.convert.targets.onnxruntime.rms_norm import lower_residual_norms


class Options(BaseModel, extra="forbid"):
    """accuracy_level: ONNX Runtime's. 4 rounds activations to int8 in front of quantised weights: fast.
    1 keeps all arithmetic in float32: exact, but FP8 weights take four times their size in memory.
    """

    accuracy_level: Literal[1, 4] = 4


def build(checkpoint: Checkpoint, options: Options, directory: Path, progress: Progress) -> TargetResult:
    """Write model.onnx, mtp.onnx if there is an MTP layer, model.onnx.data if something is encoded anew."""
    models = graphs(checkpoint)
    for model in models.values():
        lower(model, checkpoint.spec, options.accuracy_level)
    files = {"main": "model.onnx", "mtp": "mtp.onnx"}
    result = write("onnxruntime", models, directory, files, progress)
    result.details["accuracy_level"] = options.accuracy_level
    result.notes += rounding_notes(checkpoint)
    if "data" in result.files:
        result.notes.append(
            f"codes that no CPU kernel takes as they are stored are written again, in {result.files['data']}"
        )
    return result


def lower(model: ir.Model, spec: ModelSpec, accuracy_level: int) -> None:
    """Replace, in place, what ONNX Runtime has a faster kernel for, then the weights that are left."""
    model.graph.opset_imports["com.microsoft"] = 1
    rewriter = ArtifactWeights(model)
    lower_linears(rewriter, accuracy_level)
    lower_mixture_of_experts(rewriter, accuracy_level)
    if isinstance(spec.attention, GroupedQueryAttentionSpec):
        lower_grouped_query_attention(rewriter, spec)
    lower_residual_norms(rewriter)
    rewriter.lower_weights()
    rewriter.clean()
