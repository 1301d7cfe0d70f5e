"""Which of llama.cpp's architectures computes a family, and what it does otherwise than that family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmc.convert.families.rope import rope_scaling, yarn_mscale
from llmc.convert.fields import Fields
from llmc.convert.spec import (
    AttentionSpec,
    DenseMLPSpec,
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    RopeSpec,
)


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    Attributes:
        name: `general.architecture`
        rotates_neighbors: whether rows of queries and keys that are rotated together lie side by side; in checkpoints
            of these families they lie half a head apart
        mixed_layers: whether layers without experts may come first
    """

    name: str
    rotates_neighbors: bool = False
    mixed_layers: bool = False


LLAMA = Architecture("llama", rotates_neighbors=True)
DEEPSEEK2 = Architecture("deepseek2", mixed_layers=True)
_OF_FAMILY = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3_moe": Architecture("qwen3moe"),
    "deepseek_v2": DEEPSEEK2,
    "deepseek_v3": DEEPSEEK2,
}
_TOLERANCE = 1e-5


def architecture(family: str) -> Architecture | None:
    """Return llama.cpp's architecture for a family of ours; None: it is not written."""
    return _OF_FAMILY.get(family)


def families() -> list[str]:
    """Return the families that are written, by our names."""
    return [*_OF_FAMILY]


def obstacle(spec: ModelSpec, text_config: dict[str, Any]) -> str | None:
    """Return why llama.cpp would compute something else than this model; None: it does not."""
    found = architecture(spec.family)
    if found is None:
        return f"{spec.family} is none of the families that are written as GGUF: {', '.join(families())}"
    layers = range(spec.num_layers)
    for attention in dict.fromkeys(spec.attentions[: spec.num_layers]):
        if why := _attention_obstacle(attention, text_config):
            return why
    mixtures = [isinstance(spec.mlps[layer], MixtureOfExpertsSpec) for layer in layers]
    first = mixtures.index(True) if any(mixtures) else len(mixtures)
    if not all(mixtures[first:]):
        return "llama.cpp wants experts in every layer behind the first that has some"
    if any(mixtures) and first and not found.mixed_layers:
        return f"llama.cpp wants experts in all layers of a {found.name} model"
    for mlp in dict.fromkeys(spec.mlps):
        if mlp_why := _mlp_obstacle(mlp, found):
            return mlp_why
    return None


def _mlp_obstacle(mlp: Any, found: Architecture) -> str | None:
    if not isinstance(mlp, DenseMLPSpec | MixtureOfExpertsSpec) or mlp.activation != "silu":
        return "its MLPs are no SwiGLU"
    if isinstance(mlp, DenseMLPSpec):
        return None
    router = mlp.router
    if grouping(mlp) and router.group_score == "best":
        return "llama.cpp ranks groups of experts by their two best, this model by the best one (DeepSeek-V2)"
    if found is not DEEPSEEK2 and not router.normalize:
        return f"llama.cpp lets the weights of the chosen experts of a {found.name} model sum to one"
    return None


def grouping(mlp: MixtureOfExpertsSpec) -> bool:
    """Whether groups of experts are chosen first."""
    return mlp.router.top_k_groups < mlp.router.num_groups


def _attention_obstacle(attention: AttentionSpec, config: dict[str, Any]) -> str | None:
    if isinstance(attention, GroupedQueryAttentionSpec):
        if attention.window is not None:
            return "some of its layers see the last tokens only"
        if attention.rope is None or attention.rope.dim != attention.head_dim:
            return "not all channels of its heads are rotated"
        if attention.value_size != attention.head_dim:
            return "its values have another size than its keys"
        rope = attention.rope
    elif isinstance(attention, LatentAttentionSpec):
        if not attention.rope.interleaved:
            return "`rope_interleave: false` has another order of channels than llama.cpp"
        if attention.bias:
            return "llama.cpp has no biases of latent attention"
        rope = attention.rope
    else:
        return "it has layers without attention"
    return _rope_obstacle(rope, config, isinstance(attention, LatentAttentionSpec))


def _rope_obstacle(rope: RopeSpec, config: dict[str, Any], latent: bool) -> str | None:
    scaling, kind = rope_scaling(config)
    if rope.long is not None:
        return "LongRoPE is not written"
    if kind == "yarn" and scaling.config.get("truncate") is False:
        return "llama.cpp rounds YaRN's bounds (`truncate`)"
    if kind == "yarn" and latent and not scaling.config.get("mscale_all_dim"):
        return "llama.cpp wants YaRN with `mscale_all_dim`"
    if kind == "yarn" and latent and abs(rope.attention_factor - 1) > _TOLERANCE:
        return "llama.cpp takes YaRN's `mscale` for `mscale_all_dim`, and here they differ"
    return None


@dataclass(frozen=True)
class RopeScaling:
    """What GGUF says of a rotation that is scaled.

    Attributes:
        kind: "none", "linear", "yarn", or "frequencies", where a tensor divides them one by one (Llama 3.1)
        attention_factor: by which cosine and sine are multiplied beside what YaRN does by itself
    """

    kind: str
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    mscale_all_dim: float = 0.0


def scaling_of(spec: ModelSpec, text_config: dict[str, Any]) -> RopeScaling:
    """Return how the rotation of a model without `obstacle` is scaled."""
    scaling, kind = rope_scaling(text_config)
    rope = spec.attentions[0].rope
    assert rope is not None
    if kind == "linear":
        return RopeScaling("linear", scaling.number("factor"))
    if kind == "llama3":
        return RopeScaling("frequencies")
    if kind != "yarn":
        return RopeScaling("none")
    factor, name = scaling.number("factor"), "original_max_position_embeddings"
    where = Fields(text_config) if text_config.get(name) is not None else scaling
    latent = isinstance(spec.attentions[0], LatentAttentionSpec)
    return RopeScaling(
        "yarn",
        factor,
        where.integer(name, spec.max_position_embeddings),
        scaling.number("beta_fast", 32.0),
        scaling.number("beta_slow", 1.0),
        1.0 if latent else rope.attention_factor / yarn_mscale(factor),
        scaling.number("mscale_all_dim") if latent else 0.0,
    )


def frequency_factors(rope: RopeSpec) -> list[float]:
    """Return by what llama.cpp is to divide each plain frequency: [dim / 2]."""
    return [rope.theta ** (-2 * pair / rope.dim) / frequency for pair, frequency in enumerate(rope.inverse_frequencies)]
