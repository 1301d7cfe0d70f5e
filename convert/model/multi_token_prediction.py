"""Multi-token prediction, MTP (DeepSeek-V3, section 2.2): one more layer drafts the token after the next."""

from __future__ import annotations

import torch

from llmc.convert import dataflow
from llmc.convert.model.cache import LayerCache
from llmc.convert.model.decoder_layer import DecoderLayer, TorchOps


class MultiTokenPrediction(DecoderLayer):
    """`model.layers.<num_layers + depth>`; embedding and head are the main model's."""

    def forward(  # type: ignore[override]  # takes the embedding beside the hidden state
        self,
        embedding: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """[B, S, H] after `shared_head.norm`; through the head it predicts token i + 2.

        Args:
            embedding: [B, S, H] of token i + 1
            hidden: [B, S, H] of position i, as `CausalLM.hidden` makes it for MTP (or the result for depth - 1)
            positions: [B, S], i
        """
        return dataflow.multi_token_prediction(TorchOps(self, positions, cache), embedding, hidden, self.wiring)
