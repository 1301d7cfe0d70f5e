"""Attention, and how queries and keys are rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llmc.convert.spec.module import LinearSpec, ModuleSpec, NormSpec, VectorSpec


@dataclass(frozen=True)
class LongRopeSpec:
    """The frequencies [dim/2] of texts of more than `length` tokens (LongRoPE, Ding et al. 2024)."""

    length: int
    inverse_frequencies: tuple[float, ...]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (RoFormer, Su et al. 2021) over `dim` channels.

    Attributes:
        long: other frequencies for all tokens of a row whose largest position in a step is `long.length` or more
    """

    dim: int
    theta: float
    interleaved: bool  # pairs are (0,1),(2,3)… (DeepSeek) rather than (0,d/2),(1,d/2+1)… (Llama)
    inverse_frequencies: tuple[float, ...]  # [dim/2], scaling (linear, llama3, YaRN) already applied
    attention_factor: float = 1.0  # multiplies cos and sin (YaRN's mscale)
    long: LongRopeSpec | None = None


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
    rope: RopeSpec
    norm_eps: float = 1e-6  # of q_a_layernorm and kv_a_layernorm, whatever config.json's rms_norm_eps
    output: ClassVar[str] = "o_proj"  # the projection at the end

    @property
    def output_size(self) -> int:
        """How many channels `o_proj` reads."""
        return self.num_heads * self.v_head_dim

    def cache_entry(self) -> dict[str, tuple[int, int]]:
        """What is cached per token: kind → (heads, channels)."""
        return {"latent": (1, self.kv_lora_rank + self.qk_rope_head_dim)}

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `self_attn`."""
        query = self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        found: dict[str, ModuleSpec]
        if self.q_lora_rank is None:
            found = {"q_proj": LinearSpec(query, hidden_size, reads_block=True)}
        else:
            found = {
                "q_a_proj": LinearSpec(self.q_lora_rank, hidden_size, self.bias, reads_block=True),
                "q_a_layernorm": NormSpec(self.q_lora_rank, self.norm_eps),
                "q_b_proj": LinearSpec(query, self.q_lora_rank),
            }
        key_value = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        latent = self.kv_lora_rank + self.qk_rope_head_dim
        return found | {
            "kv_a_proj_with_mqa": LinearSpec(latent, hidden_size, self.bias, reads_block=True),
            "kv_a_layernorm": NormSpec(self.kv_lora_rank, self.norm_eps),
            "kv_b_proj": LinearSpec(key_value, self.kv_lora_rank),
            "o_proj": LinearSpec(hidden_size, self.output_size, self.bias),
        }


@dataclass(frozen=True)
class QKNormSpec:
    """RMS norms over queries and keys, in front of their rotation.

    Attributes:
        over: one "head" at a time, with the same weights (Qwen3), or "all" heads as one (OLMo-2)
    """

    over: Literal["head", "all"]
    eps: float
    unit_offset: bool = False


@dataclass(frozen=True)
class QueryScalingSpec:
    """Queries grow with their position: `1 + beta * ln(1 + floor(position / length))` (Llama 4)."""

    beta: float
    length: int


@dataclass(frozen=True)
class GroupedQueryAttentionSpec:
    """Grouped-query attention, GQA (Ainslie et al. 2023).

    Attributes:
        rope: over the first `rope.dim` channels of a head; None: no rotation (NoPE)
        window: how many tokens, itself included, a token sees; None: all before it
        softcap: scores become `softcap * tanh(score / softcap)` (Gemma 2)
        sinks: whether every head has a score of its own, `sinks`, for a token that has no value (gpt-oss)
        value_dim: channels of a head's value, where those are not `head_dim` (MiMo-V2)
        value_scale: multiplies values
        output_gate: whether `q_proj` makes a gate behind every head's query, whose sigmoid multiplies what the head
            mixes (Qwen3-Next)
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    softmax_scale: float
    rope: RopeSpec | None
    qk_norm: QKNormSpec | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    query_scaling: QueryScalingSpec | None = None
    value_dim: int | None = None
    value_scale: float = 1.0
    output_gate: bool = False
    output: ClassVar[str] = "o_proj"  # the projection at the end

    @property
    def value_size(self) -> int:
        """Channels of a head's value."""
        return self.value_dim or self.head_dim

    @property
    def output_size(self) -> int:
        """How many channels `o_proj` reads."""
        return self.num_heads * self.value_size

    def cache_entry(self) -> dict[str, tuple[int, int]]:
        """What is cached per token: kind → (heads, channels)."""
        return {"key": (self.num_kv_heads, self.head_dim), "value": (self.num_kv_heads, self.value_size)}

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `self_attn`."""
        key, value = (
            LinearSpec(self.num_kv_heads * channels, hidden_size, self.qkv_bias, reads_block=True)
            for channels in (self.head_dim, self.value_size)
        )
        query = self.num_heads * self.head_dim * (2 if self.output_gate else 1)
        found: dict[str, ModuleSpec] = {
            "q_proj": LinearSpec(query, hidden_size, self.qkv_bias, reads_block=True),
            "k_proj": key,
            "v_proj": value,
            "o_proj": LinearSpec(hidden_size, self.output_size, self.output_bias),
        }
        if norm := self.qk_norm:
            for name, heads in (("q_norm", self.num_heads), ("k_norm", self.num_kv_heads)):
                size = self.head_dim * (heads if norm.over == "all" else 1)
                found[name] = NormSpec(size, norm.eps, norm.unit_offset)
        return found | ({"sinks": VectorSpec(self.num_heads)} if self.sinks else {})
