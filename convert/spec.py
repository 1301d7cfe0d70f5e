"""What a model is, in numbers: the one description that torch blocks, graph and quantizer all read.

A family (`convert/families/`) turns a checkpoint's config.json into a `ModelSpec`; nothing after it looks at
config.json again. Tensor names are the Hugging Face names of the released checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal[
    "experts",  # routed experts' gate/up/down projections
    "shared_experts",
    "dense_mlp",
    "attention",  # every attention projection but kv_b_proj
    "kv_b_proj",  # MLA's latent up-projection: absorbed into query and output, so named on its own
    "router",
    "norm",
    "embedding",
    "lm_head",
    "mtp",  # everything inside a multi-token-prediction layer
    "vision",
]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (RoFormer, Su et al. 2021) over `dim` channels."""

    dim: int
    theta: float
    interleaved: bool  # pairs are (0,1),(2,3)… (DeepSeek) rather than (0,d/2),(1,d/2+1)… (Llama)
    inverse_frequencies: tuple[float, ...]  # [dim/2], scaling (linear, llama3, YaRN) already applied
    attention_factor: float = 1.0  # multiplies cos and sin (YaRN's mscale)


@dataclass(frozen=True)
class LatentAttentionSpec:
    """Multi-head latent attention, MLA (DeepSeek-V2, section 2.1)."""

    num_heads: int
    q_lora_rank: int | None  # None: one full-rank q_proj
    kv_lora_rank: int  # R
    qk_nope_head_dim: int
    qk_rope_head_dim: int  # P
    v_head_dim: int
    bias: bool
    softmax_scale: float
    norm_eps: float = 1e-6  # of q_a_layernorm and kv_a_layernorm, whatever config.json's rms_norm_eps


@dataclass(frozen=True)
class GroupedQueryAttentionSpec:
    """Grouped-query attention, GQA (Ainslie et al. 2023)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    softmax_scale: float


@dataclass(frozen=True)
class DenseMLPSpec:
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    intermediate_size: int


@dataclass(frozen=True)
class RouterSpec:
    """Group-limited top-k routing (DeepSeek-V3, section 2.1.2). One group means plain top-k."""

    num_experts: int
    top_k: int
    num_groups: int
    top_k_groups: int
    scoring: Literal["sigmoid", "softmax"]
    selection_bias: bool  # e_score_correction_bias: added for selection only
    normalize: bool  # weights of the chosen experts sum to one before scaling
    scaling_factor: float


@dataclass(frozen=True)
class MixtureOfExpertsSpec:
    router: RouterSpec
    intermediate_size: int
    shared_intermediate_size: int  # 0: no shared expert


AttentionSpec = LatentAttentionSpec | GroupedQueryAttentionSpec
MLPSpec = DenseMLPSpec | MixtureOfExpertsSpec


@dataclass(frozen=True)
class ModelSpec:
    family: str
    hidden_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeSpec
    attention: AttentionSpec
    mlps: tuple[MLPSpec, ...]  # one per layer; the MTP layers follow the decoder layers
    num_layers: int  # decoder layers, without MTP
    num_mtp_layers: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())
    fp8_cache: bool = False  # what attention remembers is rounded to E4M3, by one scale per layer

    @property
    def num_all_layers(self) -> int:
        """Decoder layers and MTP layers: `model.layers.<0 … num_all_layers - 1>`."""
        return self.num_layers + self.num_mtp_layers

    def is_mtp(self, layer: int) -> bool:
        return layer >= self.num_layers
