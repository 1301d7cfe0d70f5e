"""Multi-head latent attention, MLA (DeepSeek-V2, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import nn

from llmc.convert.model.cache import LatentCache, as_cached
from llmc.convert.model.causal_attention import causal_attention
from llmc.convert.model.linear import Linear
from llmc.convert.model.modules import add_modules
from llmc.convert.model.rms_norm import RMSNorm
from llmc.convert.model.rotary import rotary
from llmc.convert.spec import LatentAttentionSpec

Form = Literal["expanded", "absorbed"]


class LatentAttention(nn.Module):
    """Keys and values of all heads come from one latent of R channels and one rotated key of P channels.

    `form` says how they are used, with equal results: "expanded" makes every head's key and value from the
    latent (`kv_b_proj` is a linear layer, few FLOPs per query: calibration, prefill); "absorbed" moves
    `kv_b_proj` into query and output, so that all heads attend to the latent itself (decode).
    """

    q_proj: Linear  # or, with a latent of queries, the next three
    q_a_proj: Linear
    q_a_layernorm: RMSNorm
    q_b_proj: Linear
    kv_a_proj_with_mqa: Linear
    kv_a_layernorm: RMSNorm
    kv_b_proj: Linear
    o_proj: Linear

    def __init__(self, spec: LatentAttentionSpec, hidden_size: int, form: Form = "expanded") -> None:
        super().__init__()
        self.spec, self.form = spec, form
        self.cache_scales: dict[str, float] = {}  # k_scale and an equal v_scale, where the cache holds E4M3
        add_modules(self, spec.modules(hidden_size))

    def forward(self, x: torch.Tensor, positions: torch.Tensor, cache: LatentCache | None = None) -> torch.Tensor:
        """X [B, S, H], positions [B, S] → [B, S, H]."""
        return self.o_proj(self.mix(x, positions, cache))

    def query_latent(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, H] → [B, S, q_lora_rank], what `q_b_proj` reads."""
        return self.q_a_layernorm(self.q_a_proj(x))

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, H] → [B, S, R], what `kv_b_proj` reads."""
        return self.kv_a_layernorm(self.kv_a_proj_with_mqa(x)[..., : self.spec.kv_lora_rank])

    def inner_inputs(self) -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
        """What projections inside read, between the block's input and `o_proj`: by their names, made of that input."""
        queries = {} if self.spec.q_lora_rank is None else {"q_b_proj": self.query_latent}
        return {"kv_b_proj": self.latent} | queries

    def entries(self, x: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, S, H] → what is cached [B, 1, S, R + P], by the name of its scale."""
        sizes = self.spec.kv_lora_rank, self.spec.qk_rope_head_dim
        latent, key_rope = self.kv_a_proj_with_mqa(x)[:, None].split(sizes, dim=-1)
        key_rope = rotary(key_rope, self.spec.rope, positions)
        return {"k_scale": torch.cat((self.kv_a_layernorm(latent), key_rope), dim=-1)}

    def mix(self, x: torch.Tensor, positions: torch.Tensor, cache: LatentCache | None = None) -> torch.Tensor:
        """[B, S, H] → [B, S, heads * v_head_dim], what `o_proj` reads."""
        spec = self.spec
        query = self.q_proj(x) if spec.q_lora_rank is None else self.q_b_proj(self.query_latent(x))
        query = query.unflatten(-1, (spec.num_heads, -1)).transpose(1, 2)
        query_nope, query_rope = query.split((spec.qk_nope_head_dim, spec.qk_rope_head_dim), dim=-1)
        query_rope = rotary(query_rope, spec.rope, positions)
        (latent,) = as_cached(self.entries(x, positions), self.cache_scales).values()
        if cache is not None:
            latent = cache.append(latent).to(x.dtype)

        attend = self._expanded if self.form == "expanded" else self._absorbed
        mixed = attend(query_nope, query_rope, latent)  # [B, heads, S, v_head_dim]
        return mixed.transpose(1, 2).flatten(2)

    def _expanded(self, query_nope: torch.Tensor, query_rope: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        compressed, key_rope = latent.split((spec.kv_lora_rank, spec.qk_rope_head_dim), dim=-1)
        key_value = self.kv_b_proj(compressed[:, 0]).unflatten(-1, (spec.num_heads, -1)).transpose(1, 2)
        key_nope, value = key_value.split((spec.qk_nope_head_dim, spec.v_head_dim), dim=-1)
        key = torch.cat((key_nope, key_rope.expand(-1, spec.num_heads, -1, -1)), dim=-1)
        return causal_attention(torch.cat((query_nope, query_rope), dim=-1), key, value, spec.softmax_scale)

    def _absorbed(self, query_nope: torch.Tensor, query_rope: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        weight = self.kv_b_proj.full(query_nope.dtype).unflatten(0, (spec.num_heads, -1))  # [heads, nope + v, R]
        weight_key, weight_value = weight.split((spec.qk_nope_head_dim, spec.v_head_dim), dim=1)
        query = torch.cat((query_nope @ weight_key, query_rope), dim=-1)
        # The value is the whole latent: its rotary channels are computed and dropped, which spares a copy.
        mixed = causal_attention(query, latent, latent, spec.softmax_scale)
        return mixed[..., : spec.kv_lora_rank] @ weight_value.transpose(1, 2)
