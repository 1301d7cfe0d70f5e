"""What a layer computes, written once.

Torch blocks, graph, calibration and the list of weights all read it from here, each with a `LayerOps` of its own: a
norm or a residual more is a line more in this file.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

V = TypeVar("V")  # what flows: a tensor, a value of a graph, activations on disk, a number of channels


class LayerOps(Protocol[V]):
    """The steps of one layer. `name` is that of the module inside the layer whose weights a step takes."""

    def norm(self, name: str, x: V) -> V: ...

    def linear(self, name: str, x: V) -> V: ...

    def attention(self, x: V) -> V:
        """`self_attn`, from what its projections read to what leaves its `o_proj`."""

    def mlp(self, x: V) -> V:
        """`mlp`, dense or of experts, without the residual."""

    def add(self, x: V, y: V) -> V:
        """The residual x, and y beside it."""

    def concat(self, x: V, y: V) -> V:
        """The channels of x, then those of y."""


def decoder_layer(ops: LayerOps[V], x: V) -> V:
    """[B, S, H] → [B, S, H]: attention and MLP, each behind a norm and beside a residual."""
    x = ops.add(x, ops.attention(ops.norm("input_layernorm", x)))
    return ops.add(x, ops.mlp(ops.norm("post_attention_layernorm", x)))


def multi_token_prediction(ops: LayerOps[V], embedding: V, hidden: V) -> V:
    """MTP (DeepSeek-V3, section 2.2): the embedding of token i + 1 and the hidden state of token i, both [B, S, H] →
    [B, S, H], which through the main model's head predicts token i + 2.
    """
    joined = ops.concat(ops.norm("enorm", embedding), ops.norm("hnorm", hidden))
    x = decoder_layer(ops, ops.linear("eh_proj", joined))
    return ops.norm("shared_head.norm", x)
