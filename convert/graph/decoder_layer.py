"""One pre-norm decoder layer: attention and MLP, each with its residual."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.dense_mlp import dense_mlp
from llmc.convert.graph.grouped_query_attention import grouped_query_attention
from llmc.convert.graph.latent_attention import latent_attention
from llmc.convert.graph.mixture_of_experts import mixture_of_experts
from llmc.convert.graph.rms_norm import rms_norm
from llmc.convert.graph.step import StepInputs
from llmc.convert.spec import LatentAttentionSpec, MixtureOfExpertsSpec


def decoder_layer(b: GraphBuilder, x: ir.Value, layer: int, step: StepInputs) -> ir.Value:
    """[B, S, H] -> [B, S, H]"""
    path = f"model.layers.{layer}"
    latent = isinstance(b.spec.attention, LatentAttentionSpec)
    attention = latent_attention if latent else grouped_query_attention
    with b.at(path):
        normed = rms_norm(b, x, f"{path}.input_layernorm")
        x = b.op("Add", x, attention(b, normed, f"{path}.self_attn", layer, step))
        normed = rms_norm(b, x, f"{path}.post_attention_layernorm")
        mlp = b.spec.mlps[layer]
        if isinstance(mlp, MixtureOfExpertsSpec):
            y = mixture_of_experts(b, normed, f"{path}.mlp", mlp)
        else:
            y = dense_mlp(b, normed, f"{path}.mlp")
        return b.op("Add", x, y)
