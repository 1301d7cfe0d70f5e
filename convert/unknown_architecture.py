"""What to say of a config.json whose architecture no family reads: what it takes that llmc lacks, as far as its fields
tell, which family comes nearest, and what can be done.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llmc.convert.families.family import Family, Published
from llmc.errors import InputError
from llmc.patterns import shown

_TEXTS = ("text_config", "llm_config", "language_config", "thinker_config")  # objects that describe a language model
_LISTS = ("layer_types", "layers_block_type")  # a kind for every layer
_LONGEST = 80  # characters of a name that are compared
_LIKE = 0.6  # of difflib's ratio, from which two names of one beginning are taken for relatives
_BEGINNING = 4  # characters


@dataclass(frozen=True)
class Feature:
    """A part of models that shows in config.json.

    Attributes:
        fields: any of these, with a value that is neither null, false, zero nor empty, shows it
        families: once llmc has one of these, it has the feature
        layers: kinds of layers, as lists of them name them, that show it, too
        unless: fields that give `fields` another meaning
    """

    name: str
    fields: tuple[str, ...]
    families: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    def shown_by(self, config: Mapping[str, Any]) -> str | None:
        """The field that shows it."""
        if any(map(config.get, self.unless)):
            return None
        listed = (name for name in _LISTS if isinstance(config.get(name), list))
        by_layers = next((name for name in listed if any(kind in self.layers for kind in config[name])), None)
        return next((name for name in self.fields if config.get(name)), by_layers)


_GATED_DELTA_NETS = ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe")
FEATURES = (
    Feature("an encoder", ("is_encoder_decoder",)),
    Feature(
        "gated delta net layers",
        ("linear_num_value_heads", "linear_conv_kernel_dim"),
        _GATED_DELTA_NETS,
        ("linear_attention",),
        ("linear_attn_config",),
    ),
    Feature("Kimi delta attention", ("linear_attn_config",), ("kimi_linear", "kimi_k3")),
    Feature(
        "Mamba's state-space layers",
        ("ssm_state_size", "mamba_num_heads", "mamba_d_state", "mamba_n_heads", "ssm_cfg", "hybrid_override_pattern"),
        ("nemotron_h", "mamba2"),
        ("mamba", "mamba2"),
    ),
    Feature("short convolutions", ("conv_L_cache",), ("lfm2",), ("conv",)),
    Feature("hyper-connections", ("hc_mult",), ("deepseek_v4",)),
    Feature("compressed keys and values", ("compress_ratios",), ("deepseek_v4",)),
    Feature("experts chosen by a hash of the token", ("num_hash_layers",), ("deepseek_v4",)),
    Feature("block-sparse attention", ("sparse_attention_config",), ("minimax_m3",)),
    Feature("sparse attention with an indexer", ("index_topk",), ("deepseek_v32", "glm_moe_dsa")),
    Feature(
        "attention in chunks",
        ("attention_chunk_size",),
        ("llama4", "llama4_text"),
        ("chunked_attention",),
        unless=("sliding_window",),
    ),
    Feature("layers that were pruned one by one", ("block_configs",), ("nemotron-nas",)),
    Feature("attention sinks", ("add_swa_attention_sink_bias", "add_full_attention_sink_bias"), ("gpt_oss",)),
    Feature("clamped SwiGLU", ("swiglu_limit",), ("gpt_oss",)),
    Feature(
        "heads of another size or number in some layers",
        ("swa_head_dim", "swa_num_attention_heads", "global_head_dim", "num_global_key_value_heads"),
        ("gemma4", "gemma4_text", "mimo_v2_flash"),
    ),
    Feature("an embedding in every layer", ("hidden_size_per_layer_input",), ("gemma3n", "gemma4")),
    Feature("keys that are values, too", ("attention_k_eq_v",), ("gemma4", "gemma4_text")),
    Feature("experts on a narrower vector", ("moe_latent_size", "routed_expert_hidden_size")),
    Feature("gates behind attention", ("attn_output_gate", "mla_use_output_gate"), _GATED_DELTA_NETS),
    Feature("a vision tower of this kind", ("vision_config", "visual", "vision_tower", "mm_vision_tower")),
    Feature("an encoder of sound", ("audio_config", "audio_encoder")),
)


def describe(config: Mapping[str, Any], families: Collection[Family]) -> str:
    """Return one line about an architecture that none of the families reads."""
    named = config.get("architectures")
    named = ", ".join(map(str, named)) if isinstance(named, list) else ""
    text = _text(config)
    lacking = list(_lacking({**text, **config}, families))
    near = _nearest(config, text, families)
    name = shown(named or str(config.get("model_type")))
    said = f"unknown architecture {name} (fields `architectures` and `model_type`)"
    if lacking:
        said += f"; it takes {_listed(lacking)}, which llmc does not have"
    if near is None:
        known = sorted({name for family in families for name in family.architectures})
        return f"{said}; known: {', '.join(known)}"
    family = f"{near.name!r} ({near.architectures[0]})"
    if lacking:
        return f"{said}; the nearest family is {family}: choose a model of that, or write a family (CONTRIBUTING.md)"
    return (
        f"{said}; the nearest family is {family}: if this model is that under another name, give config.json its "
        "`architectures` and `model_type`; if not, write a family (CONTRIBUTING.md)"
    )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes a language model inside of another; empty: there is none."""
    return next((config[name] for name in _TEXTS if isinstance(config.get(name), Mapping)), {})


def _lacking(config: Mapping[str, Any], families: Iterable[Family]) -> Iterator[str]:
    """Features with the field that shows them."""
    known = {name for family in families for name in (family.name, *family.other_names)}
    for feature in FEATURES:
        if not known.intersection(feature.families) and (field := feature.shown_by(config)):
            yield f"{feature.name} (`{field}`)"


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _nearest(config: Mapping[str, Any], text: Mapping[str, Any], families: Collection[Family]) -> Family | None:
    """The family of the nearest name, if one is near, or else that whose fields config.json has most of."""
    kinds = [each["model_type"][:_LONGEST] for each in (text, config) if isinstance(each.get("model_type"), str)]

    fields = {**text, **config}

    def likeness(family: Family) -> tuple[float, int, int]:
        names, read = (family.name, *family.other_names), _read(family, fields)
        alike = max((_alike(kind, name) for kind in kinds for name in names), default=0.0)
        return alike, len(read & fields.keys()), -len(read - fields.keys())

    best = max(families, key=likeness, default=None)
    return best if best and any(likeness(best)[:2]) else None


def _read(family: Family, config: dict[str, Any]) -> set[str]:
    """The fields of config.json that the family asks for, as far as it gets."""
    read: set[str] = set()

    class Listening(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            read.add(name)
            return super().get(name, default)

        def __getitem__(self, name: str) -> Any:
            read.add(name)
            return super().__getitem__(name)

    def fields(config: dict[str, Any]) -> Published:
        found = type(family).fields(family, config)
        found.config = Listening(found.config)
        return found

    listener = copy.copy(family)
    listener.fields = fields  # type: ignore[method-assign]
    with suppress(InputError):
        listener.spec(config)
    return read


def _alike(kind: str, name: str) -> float:
    if kind[:_BEGINNING].lower() != name[:_BEGINNING].lower():
        return 0.0
    ratio = difflib.SequenceMatcher(None, kind.lower(), name.lower()).ratio()
    if kind.lower().partition("_")[0] == name.lower().partition("_")[0]:  # of one generation: qwen2, and qwen2_tuned
        return 1 + ratio
    return ratio if ratio >= _LIKE else 0.0
