"""Multi-token prediction (DeepSeek-V3, section 2.2)."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.decoder_layer import decoder_layer
from llmc.convert.graph.linear import linear
from llmc.convert.graph.rms_norm import rms_norm
from llmc.convert.graph.step import StepInputs


def multi_token_prediction(
    b: GraphBuilder, embedding: ir.Value, hidden: ir.Value, layer: int, step: StepInputs
) -> ir.Value:
    """Embedding of token i+1, hidden state of token i: [B, S, H] -> [B, S, H] after shared_head.norm."""
    path = f"model.layers.{layer}"
    with b.at(path):
        joined = b.concat(rms_norm(b, embedding, f"{path}.enorm"), rms_norm(b, hidden, f"{path}.hnorm"))
        x = decoder_layer(b, linear(b, joined, f"{path}.eh_proj"), layer, step)
        return rms_norm(b, x, f"{path}.shared_head.norm")
