"""One layer in the graph."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert import dataflow
from llmc.convert.graph.across_ranks import summed
from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.dense_mlp import dense_mlp
from llmc.convert.graph.grouped_query_attention import grouped_query_attention
from llmc.convert.graph.latent_attention import latent_attention
from llmc.convert.graph.linear import linear
from llmc.convert.graph.mixture_of_experts import mixture_of_experts
from llmc.convert.graph.rms_norm import rms_norm
from llmc.convert.graph.step import StepInputs
from llmc.convert.layer_modules import layer_modules
from llmc.convert.spec import (
    DenseMLPSpec,
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    NormSpec,
)


def decoder_layer(b: GraphBuilder, x: ir.Value, layer: int, step: StepInputs) -> ir.Value:
    """[B, S, H] -> [B, S, H]"""
    ops = GraphOps(b, layer, step)
    with b.at(ops.path):
        return dataflow.decoder_layer(ops, x, b.spec.wiring, b.spec.blocks(layer))


def multi_token_prediction(
    b: GraphBuilder, embedding: ir.Value, hidden: ir.Value, layer: int, step: StepInputs
) -> ir.Value:
    """Embedding of token i+1, hidden state of token i: [B, S, H] -> [B, S, H] after shared_head.norm."""
    ops = GraphOps(b, layer, step)
    with b.at(ops.path):
        return dataflow.multi_token_prediction(ops, embedding, hidden, b.spec.wiring)


class GraphOps:
    """The steps of a layer as nodes, called after it."""

    def __init__(self, b: GraphBuilder, layer: int, step: StepInputs) -> None:
        self.b, self.layer, self.step, self.path = b, layer, step, f"model.layers.{layer}"

    def norm(self, name: str, x: ir.Value) -> ir.Value:
        spec = layer_modules(self.b.spec, self.layer)[name]
        assert isinstance(spec, NormSpec)
        return rms_norm(self.b, x, f"{self.path}.{name}", spec)

    def linear(self, name: str, x: ir.Value) -> ir.Value:
        return linear(self.b, x, f"{self.path}.{name}")

    def attention(self, x: ir.Value) -> ir.Value:
        spec, path = self.b.spec.attentions[self.layer], f"{self.path}.self_attn"
        if isinstance(spec, LatentAttentionSpec):
            return summed(self.b, latent_attention(self.b, x, path, spec, self.layer, self.step), path)
        assert isinstance(spec, GroupedQueryAttentionSpec)  # see ModelSpec.graph_obstacle
        return summed(self.b, grouped_query_attention(self.b, x, path, spec, self.layer, self.step), path)

    def mlp(self, x: ir.Value) -> ir.Value:
        spec, path = self.b.spec.mlps[self.layer], f"{self.path}.mlp"
        if isinstance(spec, MixtureOfExpertsSpec):
            return summed(self.b, mixture_of_experts(self.b, x, path, spec), path)
        assert isinstance(spec, DenseMLPSpec)
        return summed(self.b, dense_mlp(self.b, x, path, spec), path)

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        total: ir.Value = self.b.op("Add", x, y)
        return total

    def scale(self, x: ir.Value, factor: float) -> ir.Value:
        scaled: ir.Value = self.b.op("Mul", x, self.b.constant(factor, self.b.dtype))
        return scaled

    def concat(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.b.concat(x, y)
