"""What a layer computes, written once.

Torch blocks, graph, calibration and the list of weights all read it from here, each with a `LayerOps` of its own: a
norm or a residual more is a line more in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from llmc.convert.spec import Blocks, WiringSpec

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

    def scale(self, x: V, factor: float) -> V: ...

    def concat(self, x: V, y: V) -> V:
        """The channels of x, then those of y."""


def decoder_layer(ops: LayerOps[V], x: V, wiring: WiringSpec, blocks: Blocks = "both") -> V:
    """[B, S, H] → [B, S, H]: attention and MLP, each between its norms and beside a residual.

    Norms have the names that checkpoints give them: `post_attention_layernorm` is behind attention where there are
    norms behind blocks, and else in front of the MLP. A layer of one block (`blocks`) has a `norm` in front of it.
    """
    before, after = {"pre": (True, False), "post": (False, True), "sandwich": (True, True)}[wiring.norms]
    mlp_norm = "pre_feedforward_layernorm" if after else "post_attention_layernorm"

    def added(x: V, block: Callable[[V], V], norm: str, norm_behind: str) -> V:
        y = block(ops.norm(norm, x) if before else x)
        y = ops.norm(norm_behind, y) if after else y
        return ops.add(x, y if wiring.residual_scale == 1 else ops.scale(y, wiring.residual_scale))

    if blocks != "both":
        return added(x, ops.attention if blocks == "attention" else ops.mlp, "norm", "norm_behind")
    x = added(x, ops.attention, "input_layernorm", "post_attention_layernorm")
    return added(x, ops.mlp, mlp_norm, "post_feedforward_layernorm")


def multi_token_prediction(ops: LayerOps[V], embedding: V, hidden: V, wiring: WiringSpec) -> V:
    """MTP (DeepSeek-V3, section 2.2): the embedding of token i + 1 and the hidden state of token i, both [B, S, H] →
    [B, S, H], which through the main model's head predicts token i + 2.
    """
    normed = ops.norm("enorm", embedding), ops.norm("hnorm", hidden)
    joined = ops.concat(*(reversed(normed) if wiring.mtp_hidden_first else normed))
    x = decoder_layer(ops, ops.linear("eh_proj", joined), wiring)
    return ops.norm("shared_head.norm", x)
