"""Target `onnxruntime`: graphs for ONNX Runtime's CPU kernels, with the checkpoint's own files as weights.

The graphs hold no copy of what the safetensors store: initializers point into them (`artifact_weights`). All
lie in one folder, because ONNX Runtime refuses external data outside the folder of the model. Only what it
cannot use as stored, FP8 and the head at accuracy level 4, is written again, to model.onnx.data.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from pydantic import BaseModel, Field

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.build import graphs
from llmc.convert.graph.write import write
from llmc.convert.spec import ModelSpec
from llmc.convert.targets import PlannedWeights, Target, TargetResult, rounding_notes
from llmc.convert.targets.onnxruntime.artifact_weights import ArtifactWeights
from llmc.convert.targets.onnxruntime.embedding import lower_embedding
from llmc.convert.targets.onnxruntime.grouped_query_attention import lower_grouped_query_attention
from llmc.convert.targets.onnxruntime.linear import lower_linears
from llmc.convert.targets.onnxruntime.lm_head import lower_lm_head
from llmc.convert.targets.onnxruntime.mixture_of_experts import lower_mixture_of_experts
from llmc.convert.targets.onnxruntime.rms_norm import lower_residual_norms


class OnnxRuntimeOptions(BaseModel, extra="forbid"):
    """What a recipe may say.

    Every token reads the whole head, as floats four bytes a weight. 8 bits of it cost a KL divergence of 5e-5, a fifth
    of what accuracy level 4 does.
    """

    accuracy_level: Literal[1, 4] = Field(
        default=4,
        description="ONNX Runtime's: 4 rounds activations to int8 in front of quantized weights, which is fast; 1 "
        "keeps all arithmetic in float32, which is exact, but FP8 weights take four times their size in memory",
    )
    lm_head_bits: Literal[8] | None = Field(
        default=8, description="of a head that the recipe leaves in floats, at accuracy level 4; null leaves it"
    )

    @property
    def rounds_head(self) -> bool:
        """Whether a head of floats becomes 8 bits."""
        return self.lm_head_bits == 8 and self.accuracy_level == 4


class OnnxRuntime(Target[OnnxRuntimeOptions]):
    name = "onnxruntime"
    Options = OnnxRuntimeOptions
    takes_negative_scales = True

    def build(
        self, checkpoint: Checkpoint, options: OnnxRuntimeOptions, directory: Path, progress: ProgressFunction
    ) -> TargetResult:
        """Write model.onnx, mtp.onnx if there is an MTP layer, vision.onnx if the model takes images, and
        model.onnx.data if something is encoded anew.
        """
        models = graphs(checkpoint, images=True)
        rounded_heads = [lower(each, checkpoint.spec, options) for role, each in models.items() if role != "vision"]
        if "vision" in models:
            lower_weights(models["vision"])
        files = {"main": "model.onnx", "mtp": "mtp.onnx", "vision": "vision.onnx"}
        result = write(self.name, models, directory, files, partial(progress, "weights"))
        result.details["accuracy_level"] = options.accuracy_level
        result.notes += rounding_notes(checkpoint)
        if any(rounded_heads):
            result.notes.append("the head is rounded to 8 bits; lm_head_bits: null leaves it as it is")
        if "data" in result.files:
            result.notes.append(
                f"weights that no CPU kernel takes as they are stored are written again, in {result.files['data']}"
            )
        return result

    def estimate_bytes(self, weights: PlannedWeights, options: OnnxRuntimeOptions) -> int:
        """FP8 but for an embedding's, FP4, and a head of floats are encoded anew: a byte each, and a scale for 32 of
        the head's and for each group of FP4; at accuracy level 1 FP4 as float32.
        """
        head, tied = weights.spec.vocab_size * weights.spec.hidden_size * 9 // 8, weights.spec.tie_word_embeddings
        rounded = options.rounds_head and not weights.parameters.get("embedding" if tied else "lm_head")
        looked_up = 0 if tied else weights.in_fp8("embedding")
        fp4 = sum(
            count * 4 if options.accuracy_level == 1 else count + count * 4 // group
            for group, count in weights.in_fp4().items()
        )
        return weights.in_fp8() - looked_up + fp4 + (head if rounded else 0)


def lower(model: ir.Model, spec: ModelSpec, options: OnnxRuntimeOptions) -> bool:
    """Replace, in place, what ONNX Runtime has a faster kernel for, then the weights that are left.

    Returns whether that rounded the head.
    """
    model.graph.opset_imports["com.microsoft"] = 1
    rewriter = ArtifactWeights(model)
    lower_embedding(rewriter)
    lower_linears(rewriter, options.accuracy_level)
    rounded = options.rounds_head and lower_lm_head(rewriter)
    lower_mixture_of_experts(rewriter, spec, options.accuracy_level)
    lower_grouped_query_attention(rewriter, spec)
    lower_residual_norms(rewriter)
    rewriter.lower_weights()
    rewriter.clean()
    return rounded


def lower_weights(model: ir.Model) -> None:
    """Replace, in place, weights by the stored ones; of a vision tower, which is computed in float32."""
    rewriter = ArtifactWeights(model)
    rewriter.lower_weights()
    rewriter.clean()


TARGET = OnnxRuntime()
