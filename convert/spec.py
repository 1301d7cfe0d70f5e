"""What a model is, in numbers: the one description that torch blocks, graph and quantizer all read.

A family (`convert/families/`) turns a checkpoint's config.json into a `ModelSpec`; nothing after it looks at
config.json again. Names of modules are llmc's own, which are those of Llama's and DeepSeek's checkpoints; how a family
names them is said by its `stored_names`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

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
class ClampedSwiGLU:
    """`(up + 1) * gate * sigmoid(alpha * gate)`, with the gate at most `limit`, and up between -`limit` and `limit`
    (gpt-oss).
    """

    alpha: float
    limit: float


Activation = Literal["silu", "gelu_tanh", "relu2"] | ClampedSwiGLU
# By what an FP8 cache is scaled: keys, or the latent, and values. Tensors of `self_attn`.
CACHE_SCALES = ("k_scale", "v_scale")


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer: weight [outputs, inputs].

    Attributes:
        reads_block: whether it reads what enters its block, as others there do, and not an input of its own
    """

    outputs: int
    inputs: int
    bias: bool = False
    reads_block: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.outputs, self.inputs)} | ({"bias": (self.outputs,)} if self.bias else {})


@dataclass(frozen=True)
class NormSpec:
    """RMS norm over `size` channels.

    Attributes:
        unit_offset: whether it multiplies by 1 + weight (Gemma) instead of by the weight
    """

    size: int
    eps: float
    unit_offset: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.size,)}


@dataclass(frozen=True)
class GateSpec:
    """What scores experts: a row per expert, and a bias of the scores, or one that they are selected with."""

    num_experts: int
    inputs: int
    selection_bias: bool
    bias: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        biases = {"bias": self.bias, "e_score_correction_bias": self.selection_bias}
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.num_experts, self.inputs)}
        return shapes | {name: (self.num_experts,) for name, there in biases.items() if there}


@dataclass(frozen=True)
class VectorSpec:
    """Numbers of a block's own, such as a score for each head."""

    size: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.size,)}


@dataclass(frozen=True)
class ConvolutionSpec:
    """A convolution of every channel by itself over the last `width` tokens."""

    channels: int
    width: int
    bias: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.channels, 1, self.width)} | ({"bias": (self.channels,)} if self.bias else {})


@dataclass(frozen=True)
class MatrixSpec:
    """A matrix that is not quantized: weight [outputs, inputs]."""

    outputs: int
    inputs: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.outputs, self.inputs)}


# What has weights, and their shapes.
ModuleSpec = LinearSpec | NormSpec | GateSpec | VectorSpec | ConvolutionSpec | MatrixSpec


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


@dataclass(frozen=True)
class GatedDeltaNetSpec:
    """Gated DeltaNet (Yang et al. 2025): what attention remembers in a cache, a state of constant size does.

    Attributes:
        num_key_heads: each of them for as many consecutive value heads as there are more of those
        conv_width: tokens that the convolution of queries, keys and values reads
        fused: whether `in_proj_qkvz` and `in_proj_ba` make, key head by key head, what otherwise `in_proj_qkv`,
            `in_proj_z`, `in_proj_b` and `in_proj_a` make (Qwen3-Next)
        norm_eps: of the norm of what a head reads
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    fused: bool
    norm_eps: float
    output: ClassVar[str] = "out_proj"  # the projection at the end
    rope: ClassVar[RopeSpec | None] = None

    @property
    def key_size(self) -> int:
        """Channels of all keys, or of all queries."""
        return self.num_key_heads * self.key_dim

    @property
    def output_size(self) -> int:
        """How many channels `out_proj` reads."""
        return self.num_value_heads * self.value_dim

    @property
    def convolved_size(self) -> int:
        """Channels of what is convolved: all queries, keys and values."""
        return 2 * self.key_size + self.output_size

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """What is remembered of a text, beside what is convolved next."""
        return self.num_value_heads, self.key_dim, self.value_dim

    def cache_entry(self) -> dict[str, tuple[int, int]]:
        """What is cached per token: nothing."""
        return {}

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `self_attn`."""
        mixed, heads = self.convolved_size, self.num_value_heads
        outputs = {"in_proj_qkv": mixed, "in_proj_z": self.output_size, "in_proj_b": heads, "in_proj_a": heads}
        if self.fused:
            outputs = {"in_proj_qkvz": mixed + self.output_size, "in_proj_ba": 2 * heads}
        found: dict[str, ModuleSpec] = {
            name: LinearSpec(size, hidden_size, reads_block=True) for name, size in outputs.items()
        }
        return found | {
            "conv1d": ConvolutionSpec(mixed, self.conv_width),
            "dt_bias": VectorSpec(heads),
            "A_log": VectorSpec(heads),
            "norm": NormSpec(self.value_dim, self.norm_eps),
            "out_proj": LinearSpec(hidden_size, self.output_size),
        }


@dataclass(frozen=True)
class Mamba2Spec:
    """Mamba-2 (Dao & Gu 2024): linear attention whose state forgets, each head's at a pace of its own.

    Attributes:
        num_groups: of heads that share queries and keys (C and B), and a norm
        conv_width: tokens that the convolution of values, keys and queries reads
        least_step: the shortest time that a token takes
    """

    num_heads: int
    head_dim: int
    key_dim: int  # of the state (N)
    num_groups: int
    conv_width: int
    bias: bool
    conv_bias: bool
    least_step: float
    norm_eps: float
    output: ClassVar[str] = "out_proj"  # the projection at the end
    rope: ClassVar[RopeSpec | None] = None

    @property
    def output_size(self) -> int:
        """How many channels `out_proj` reads."""
        return self.num_heads * self.head_dim

    @property
    def convolved_size(self) -> int:
        """Channels of what is convolved: all values, keys and queries."""
        return self.output_size + 2 * self.num_groups * self.key_dim

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """What is remembered of a text, beside what is convolved next."""
        return self.num_heads, self.key_dim, self.head_dim

    def cache_entry(self) -> dict[str, tuple[int, int]]:
        """What is cached per token: nothing."""
        return {}

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `self_attn`."""
        inputs = self.output_size + self.convolved_size + self.num_heads
        return {
            "in_proj": LinearSpec(inputs, hidden_size, self.bias, reads_block=True),
            "conv1d": ConvolutionSpec(self.convolved_size, self.conv_width, self.conv_bias),
            "dt_bias": VectorSpec(self.num_heads),
            "A_log": VectorSpec(self.num_heads),
            "D": VectorSpec(self.num_heads),
            "norm": NormSpec(self.output_size, self.norm_eps),
            "out_proj": LinearSpec(hidden_size, self.output_size, self.bias),
        }


StateSpec = GatedDeltaNetSpec | Mamba2Spec  # what remembers a text, however long, in as many numbers


def state_bytes(spec: StateSpec) -> int:
    """What is remembered of a text: the state in float32, and what the convolution reads next, two bytes each."""
    return 4 * math.prod(spec.state_shape) + 2 * spec.convolved_size * (spec.conv_width - 1)


@dataclass(frozen=True)
class AbsentSpec:
    """No block: the layer is the other one, behind a norm that is called `norm`."""

    output: ClassVar[str] = ""
    rope: ClassVar[RopeSpec | None] = None
    output_size: ClassVar[int] = 0
    intermediate_size: ClassVar[int] = 0

    def cache_entry(self) -> dict[str, tuple[int, int]]:
        return {}

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        return {}


@dataclass(frozen=True)
class DenseMLPSpec:
    """A gated MLP: down(activation(gate(x)) * up(x)). Also one routed expert, or the shared experts as one.

    Attributes:
        activation: "silu" (SwiGLU), GELU in its tanh form (GeGLU), or one that says what becomes of gate and up;
            "relu2": none is gated, down(relu(up(x))^2)
        bias: whether all three projections have one
    """

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False

    @property
    def gated(self) -> bool:
        return self.activation != "relu2"

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `mlp`."""
        gate = LinearSpec(self.intermediate_size, hidden_size, self.bias, reads_block=True)
        down = LinearSpec(hidden_size, self.intermediate_size, self.bias)
        if not self.gated:
            return {"up_proj": gate, "down_proj": down}
        return {"gate_proj": gate, "up_proj": gate, "down_proj": down}


@dataclass(frozen=True)
class RouterSpec:
    """Group-limited top-k routing (DeepSeek-V3, section 2.1.2). One group means plain top-k.

    Attributes:
        group_score: what ranks a group: the sum of its two best experts, or the best one (DeepSeek-V2)
    """

    num_experts: int
    top_k: int
    num_groups: int
    top_k_groups: int
    scoring: Literal["sigmoid", "softmax"]
    selection_bias: bool  # e_score_correction_bias: added for selection only
    normalize: bool  # weights of the chosen experts sum to one before scaling
    scaling_factor: float
    group_score: Literal["best two", "best"] = "best two"
    bias: bool = False  # of the scores


@dataclass(frozen=True)
class MixtureOfExpertsSpec:
    """Routed experts, and shared ones.

    Attributes:
        shared_gate: whether the sigmoid of a score of its own, by `shared_expert_gate`, multiplies what the shared
            expert makes (Qwen3-Next)
        latent_size: channels that routed experts read and make, between two projections for all of them (LatentMoE);
            None: those of the model
    """

    router: RouterSpec
    intermediate_size: int
    shared_intermediate_size: int  # 0: no shared expert
    activation: Activation = "silu"
    bias: bool = False  # of all projections of routed experts
    shared_gate: bool = False
    latent_size: int | None = None

    @property
    def expert(self) -> DenseMLPSpec:
        """A routed expert."""
        return DenseMLPSpec(self.intermediate_size, self.activation, self.bias)

    @property
    def shared_experts(self) -> DenseMLPSpec | None:
        return DenseMLPSpec(self.shared_intermediate_size, self.activation) if self.shared_intermediate_size else None

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `mlp`."""
        router, expert = self.router, self.expert.modules(self.latent_size or hidden_size)
        found: dict[str, ModuleSpec] = {
            "gate": GateSpec(router.num_experts, hidden_size, router.selection_bias, router.bias)
        }
        for number in range(router.num_experts):
            found |= {f"experts.{number}.{name}": module for name, module in expert.items()}
        shared = self.shared_experts.modules(hidden_size) if self.shared_experts else {}
        if self.latent_size is not None:
            found["fc1_latent_proj"] = MatrixSpec(self.latent_size, hidden_size)
            found["fc2_latent_proj"] = MatrixSpec(hidden_size, self.latent_size)
        if self.shared_gate:
            found["shared_expert_gate"] = GateSpec(1, hidden_size, selection_bias=False)
        return found | {f"shared_experts.{name}": module for name, module in shared.items()}


AttentionSpec = LatentAttentionSpec | GroupedQueryAttentionSpec | StateSpec | AbsentSpec
MLPSpec = DenseMLPSpec | MixtureOfExpertsSpec | AbsentSpec
Blocks = Literal["both", "attention", "mlp"]


def blocks_of(attention: AttentionSpec, mlp: MLPSpec) -> Blocks:
    """Which blocks a layer has."""
    if isinstance(mlp, AbsentSpec):
        return "attention"
    return "mlp" if isinstance(attention, AbsentSpec) else "both"


@dataclass(frozen=True)
class WiringSpec:
    """How norms and residuals join the blocks of a layer.

    Attributes:
        norms: "pre", in front of attention and MLP; "post", behind them (OLMo 2); "sandwich", both (Gemma 2)
        residual_scale: multiplies what attention and MLP add to the residual (Granite)
        unit_offset: of all norms of the layers, see `NormSpec`
        mtp_hidden_first: whether MTP joins the hidden state with the embedding behind it, not in front (MiMo)
        mtp_hidden_normed: whether that hidden state has passed the final norm (not in MiMo)
    """

    norms: Literal["pre", "post", "sandwich"] = "pre"
    residual_scale: float = 1.0
    unit_offset: bool = False
    mtp_hidden_first: bool = False
    mtp_hidden_normed: bool = True


@dataclass(frozen=True)
class ModelSpec:
    """A whole model.

    Attributes:
        embedding_scale: multiplies what is looked up (Gemma, Granite)
        logits_scale: multiplies what the head makes (Granite)
        logits_softcap: logits become `logits_softcap * tanh(logits / logits_softcap)` (Gemma 2)
    """

    family: str
    hidden_size: int
    vocab_size: int
    rms_norm_eps: float
    # One of each per layer, and one object for all layers that are alike; the MTP layers follow the decoder layers.
    attentions: tuple[AttentionSpec, ...]
    mlps: tuple[MLPSpec, ...]
    num_layers: int  # decoder layers, without MTP
    num_mtp_layers: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = field(default=())
    wiring: WiringSpec = WiringSpec()
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    logits_softcap: float | None = None
    fp8_cache: bool = False  # what attention remembers is rounded to E4M3, by one scale per layer

    @property
    def num_all_layers(self) -> int:
        """Decoder layers and MTP layers: `model.layers.<0 … num_all_layers - 1>`."""
        return self.num_layers + self.num_mtp_layers

    @property
    def original_context(self) -> int | None:
        """The longest text that LongRoPE's short frequencies are for; None: all texts are rotated alike."""
        longs = (attention.rope.long for attention in self.attentions if attention.rope is not None)
        return min((long.length for long in longs if long is not None), default=None)

    @property
    def final_norm(self) -> NormSpec:
        """`model.norm`."""
        return NormSpec(self.hidden_size, self.rms_norm_eps, self.wiring.unit_offset)

    @property
    def graph_obstacle(self) -> str | None:
        """Why llmc makes no graph, and so no target, of this model; None: it does."""
        if any(isinstance(attention, GatedDeltaNetSpec) for attention in self.attentions):
            return "no graph of Gated DeltaNet layers is made yet"
        if any(isinstance(attention, Mamba2Spec) for attention in self.attentions):
            return "no graph of Mamba-2 layers is made yet"
        if any(self.blocks(layer) != "both" for layer in range(self.num_all_layers)):
            return "no graph of layers with one block is made yet"
        if any(isinstance(each, GroupedQueryAttentionSpec) and each.output_gate for each in self.attentions):
            return "no graph of attention with an output gate is made yet"
        if any(isinstance(mlp, MixtureOfExpertsSpec) and mlp.shared_gate for mlp in self.mlps):
            return "no graph of a shared expert with a gate is made yet"
        return None

    def blocks(self, layer: int) -> Blocks:
        """Which blocks the layer has."""
        return blocks_of(self.attentions[layer], self.mlps[layer])

    def is_cached(self, layer: int) -> bool:
        """Whether the layer has a cache that grows with the text."""
        return bool(self.attentions[layer].cache_entry())

    def is_mtp(self, layer: int) -> bool:
        return layer >= self.num_layers
