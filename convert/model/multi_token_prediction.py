"""Multi-token prediction, MTP (DeepSeek-V3, section 2.2): one more layer drafts the token after the next."""

from __future__ import annotations

import torch
from torch import nn

from llmc.convert.model.cache import LayerCache
from llmc.convert.model.decoder_layer import DecoderLayer
from llmc.convert.model.linear import Linear
from llmc.convert.model.rms_norm import RMSNorm
from llmc.convert.spec import ModelSpec


class MultiTokenPrediction(DecoderLayer):
    """`model.layers.<num_layers + depth>`; embedding and head are the main model's."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__(spec, index)
        size = spec.hidden_size
        self.enorm = RMSNorm(size, spec.rms_norm_eps)
        self.hnorm = RMSNorm(size, spec.rms_norm_eps)
        self.eh_proj = Linear(2 * size, size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(size, spec.rms_norm_eps)})

    def forward(  # type: ignore[override]  # takes the embedding beside the hidden state
        self,
        embedding: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """[B, S, H] after `shared_head.norm`; through the head it predicts token i + 2.

        embedding: [B, S, H] of token i + 1
        hidden:    [B, S, H] of position i, after the main model's final norm (or the result for depth - 1)
        positions: [B, S], i
        """
        x = self.eh_proj(self.joined(embedding, hidden))
        return self.shared_head["norm"](super().forward(x, positions, cache))

    def joined(self, embedding: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, S, 2 H], what `eh_proj` reads."""
        return torch.cat((self.enorm(embedding), self.hnorm(hidden)), dim=-1)
