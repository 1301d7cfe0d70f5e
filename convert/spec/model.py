"""A whole model, and how the blocks of its layers are joined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from llmc.convert.spec.attention import GroupedQueryAttentionSpec, LatentAttentionSpec, RopeSpec
from llmc.convert.spec.mlp import DenseMLPSpec, MixtureOfExpertsSpec
from llmc.convert.spec.module import ModuleSpec, NormSpec
from llmc.convert.spec.state import GatedDeltaNetSpec, Mamba2Spec, StateSpec

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


# By what an FP8 cache is scaled: keys, or the latent, and values. Tensors of `self_attn`.
CACHE_SCALES = ("k_scale", "v_scale")


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
