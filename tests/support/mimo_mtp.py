"""MiMo-7B's layer for multi-token prediction, for which transformers has no class: what vLLM computes, with code that
MiMo's authors wrote, around transformers' decoder layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.safetensors_file import read_header

MTP = "model.mtp_layers.0."


def reference_drafts(main: PreTrainedModel, checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, S - 1, V] of what follows token i + 1, by a layer of a checkpoint behind transformers' `main`."""
    return Reference(main, _stored(checkpoint)).logits(ids)


def _stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The layer's tensors by their names on disk."""
    return {
        name.removeprefix(MTP): tensor.read().float()
        for shard in checkpoint.shards
        for name, tensor in read_header(shard).items()
        if name.startswith(MTP)
    }


class Reference(nn.Module):
    """The layer around transformers' decoder layer."""

    token_layernorm: nn.Module
    hidden_layernorm: nn.Module
    final_layernorm: nn.Module

    def __init__(self, model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        size, config = model.config.hidden_size, model.config
        for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            self.add_module(name, Qwen2RMSNorm(size, config.rms_norm_eps))
        self.input_proj = nn.Linear(2 * size, size, bias=False)
        self.block = Qwen2DecoderLayer(config, 0)
        own = dict(self.named_parameters())
        assert own.keys() == {name if name in own else f"block.{name}" for name in tensors}
        self.load_state_dict({name if name in own else f"block.{name}": tensor for name, tensor in tensors.items()})
        self.main = [model]

    @torch.no_grad()
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, S - 1, V]: what follows token i + 1, from it and the last layer's output at token i."""
        main: Any = self.main[0]
        seen: list[torch.Tensor] = []
        hook = main.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        main(ids, use_cache=False)
        hook.remove()
        embedded = self.token_layernorm(main.model.embed_tokens(ids[:, 1:]))
        x = self.input_proj(torch.cat((self.hidden_layernorm(seen[0][:, :-1]), embedded), dim=-1))
        positions = torch.arange(x.shape[1])[None]
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None]
        x = self.block(x, attention_mask=mask, position_embeddings=main.model.rotary_emb(x, positions))
        logits: torch.Tensor = main.lm_head(self.final_layernorm(x))
        return logits
