"""Rotary frequencies from config.json: plain, and with the scalings linear, llama3, YaRN and LongRoPE.

Both spellings are read: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`.
Everything is computed in float32, in the order in which transformers does (modeling_rope_utils.py): the cosine at
position 100,000 depends on the last bit of a frequency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from llmc.convert.fields import Fields
from llmc.convert.spec import LongRopeSpec, RopeSpec
from llmc.errors import InputError
from llmc.patterns import shown


def rope_spec(config: dict[str, Any], dim: int, interleaved: bool, max_positions: int) -> RopeSpec:
    """The rotary embedding over `dim` channels that config.json describes."""
    scaling, kind = rope_scaling(config)
    if nested := sorted(name for name, value in scaling.config.items() if isinstance(value, dict)):
        raise InputError(f"`{scaling.prefix}{nested[0]}` is of some layers, but all layers of this model rotate alike")
    theta = (scaling if scaling.has("rope_theta") else Fields(config)).number("rope_theta", 10000.0)
    if theta <= 1:
        raise InputError(f"`rope_theta` must be above 1, not {theta}")
    periods = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    frequencies, attention_factor, long = 1.0 / periods, 1.0, None
    if kind == "linear":
        frequencies = frequencies / scaling.number("factor")
    elif kind == "llama3":
        frequencies = _llama3(frequencies, scaling, _original_length(scaling, config, max_positions))
    elif kind == "yarn":
        frequencies, attention_factor = _yarn(periods, theta, scaling, _original_length(scaling, config, max_positions))
    elif kind == "longrope":
        length = _original_length(scaling, config, max_positions)
        frequencies, beyond = (
            1.0 / (torch.tensor(scaling.numbers(name, dim // 2)) * periods) for name in ("short_factor", "long_factor")
        )
        long = LongRopeSpec(length, tuple(beyond.tolist()))
        attention_factor = _longrope_attention_factor(scaling, length, max_positions)
    elif kind == "dynamic":
        raise InputError(
            f"`{scaling.prefix}rope_type` is 'dynamic': its frequencies change with every token beyond the original "
            "context, where cached keys keep older ones, so that a text has no single result; remove it and keep to "
            "that context, or use a model with yarn or longrope"
        )
    elif kind != "default":
        raise InputError(
            f"`{scaling.prefix}rope_type` is {shown(str(kind))}; supported: default, linear, llama3, longrope, yarn"
        )
    return RopeSpec(dim, theta, interleaved, tuple(frequencies.tolist()), attention_factor, long)


def rope_of_layers(fields: Fields, kind: str, dim: int, thetas: Mapping[str, float]) -> RopeSpec:
    """The rotation of the layers of one kind of `layer_types`, where kinds rotate differently.

    transformers 5 has `rope_parameters` for each kind. Before, those that see all had `rope_theta` and `rope_scaling`,
    and those with a window `rope_local_base_freq` and no scaling. What the new form leaves out is taken from the old
    one, and `rope_scaling` wins over it.
    """
    nested, all_see = fields.mapping("rope_parameters").mapping(kind).config, kind == "full_attention"
    theta = "rope_theta" if all_see else "rope_local_base_freq"
    config: dict[str, Any] = {"rope_theta": fields.number(theta) if fields.has(theta) else thetas[kind]}
    if scaling := fields.mapping("rope_scaling").config if all_see else {}:
        config["rope_scaling"] = nested | scaling
    elif nested:
        config["rope_parameters"] = nested
    return rope_spec(config, dim, False, fields.integer("max_position_embeddings"))


def rope_scaling(config: dict[str, Any]) -> tuple[Fields, str]:
    """The object that describes the scaling, and its kind (`default`: none)."""
    scaling = Fields(config).mapping("rope_scaling" if config.get("rope_scaling") else "rope_parameters")
    return scaling, scaling.config.get("rope_type") or scaling.config.get("type") or "default"


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Attention temperature of YaRN (Peng et al. 2023, section 3.4), with DeepSeek's `mscale`."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _original_length(scaling: Fields, config: dict[str, Any], max_positions: int) -> int:
    name = "original_max_position_embeddings"
    return (Fields(config) if config.get(name) is not None else scaling).integer(name, max_positions)


def _longrope_attention_factor(scaling: Fields, length: int, max_positions: int) -> float:
    """LongRoPE, section 3.3; transformers takes how much longer the context became for a missing `factor`."""
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")
    factor = scaling.number("factor", max_positions / length)
    if length < 2:
        raise InputError(f"`original_max_position_embeddings` is {length}; LongRoPE wants at least 2 tokens")
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))


def _llama3(frequencies: torch.Tensor, scaling: Fields, length: int) -> torch.Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1)."""
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    wavelengths = 2 * math.pi / frequencies
    blend = (length / wavelengths - low) / (high - low)
    scaled = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = torch.where(wavelengths > length / low, frequencies / factor, scaled)
    return torch.where(wavelengths < length / high, frequencies, scaled)


def _yarn(periods: torch.Tensor, theta: float, scaling: Fields, length: int) -> tuple[torch.Tensor, float]:
    """NTK-by-parts interpolation (YaRN, section 3.2) and the factor on cosine and sine."""
    dim, factor = 2 * len(periods), scaling.number("factor")

    def channel(rotations: float) -> float:
        """The channel that turns this often within the original context."""
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.number("beta_fast", 32)), channel(scaling.number("beta_slow", 1))
    if scaling.boolean("truncate", "truncate" not in scaling.config):  # null is false, to transformers
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    # 1 - kept is not always ramp, in float32.
    frequencies = 1.0 / (factor * periods) * (1 - kept) + 1.0 / periods * kept

    if scaling.has("attention_factor"):
        return frequencies, scaling.number("attention_factor")
    if scaling.config.get("mscale") and scaling.config.get("mscale_all_dim"):
        mscale, mscale_all_dim = scaling.number("mscale"), scaling.number("mscale_all_dim")
        return frequencies, yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    return frequencies, yarn_mscale(factor)
