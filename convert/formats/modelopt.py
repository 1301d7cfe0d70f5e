"""NVIDIA's ModelOpt: FP8 with one scale per tensor, and NVFP4, side by side in one model if it says so.

FP8 is `weight` in E4M3, `weight_scale` and `input_scale`, one float32 each. NVFP4 is `weight` U8 [out, in / 2] with two
codes a byte, `weight_scale` in E4M3 [out, in / 16], and `weight_scale_2`, one float32 that multiplies. Which modules
are stored how is told by what they store; the patterns of `ignore` and `exclude_modules` add nothing.
Source: modelopt/torch/export/quant_utils.py of TensorRT-Model-Optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from llmc.convert.fields import Fields
from llmc.convert.formats.float4 import NVFP4
from llmc.convert.formats.float_quantized import FloatQuantized
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.layout import Source
from llmc.convert.quantized_weight import Activations, QuantizedWeight, QuantSpec, TwoLevelScales
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError

_READ = ("FP8", "NVFP4", "W4A16_NVFP4")
_MIXED = "MIXED_PRECISION"
_CACHE = {".self_attn.k_proj.k_scale": ".self_attn.k_scale", ".self_attn.v_proj.v_scale": ".self_attn.v_scale"}


class ModelOptNVFP4(NVFP4):
    name = "modelopt-nvfp4"
    part_names = frozenset({"weight", "weight_scale", "weight_scale_2", "input_scale"})
    cuts = dict.fromkeys(("weight_scale_2", "input_scale"), "whole")
    key = global_part = "weight_scale_2"
    qweight_part = "weight"
    input_part = "input_scale"

    def _rounding(self, parts: Parts) -> Literal["nvfp4", "mxfp4"] | None:
        """Inputs are rounded where there is a scale for them."""
        return self.rounding if self.input_part in parts else None

    @staticmethod
    def _input_scale(stored: float) -> float:
        return stored

    def scales(self, parts: Parts) -> tuple[torch.Tensor, TwoLevelScales | None]:
        """The products; what is written divides by the reciprocal, which may differ in the last place of a float32."""
        codes, factor = parts[self.scales_part].read(), self.whole(parts)
        return codes.float() * factor, TwoLevelScales(codes, factor.reciprocal())


class ModelOptFP8(FloatQuantized):
    name = "modelopt-fp8"

    def shape(self, parts: Parts) -> tuple[int, int]:
        return super(ModelOptFP8, self._of(parts)).shape(parts)

    def kind(self, parts: Parts) -> QuantSpec:
        return super(ModelOptFP8, self._of(parts)).kind(parts)

    def decode(self, parts: Parts) -> QuantizedWeight:
        return super(ModelOptFP8, self._of(parts)).decode(parts)

    def _of(self, parts: Parts) -> ModelOptFP8:
        """Inputs are rounded where there is a scale for them."""
        return replace(self, activations=Activations("tensor") if self.input_part in parts else None)


class ModelOpt(Source):
    """`quantization_config` in config.json, or `quantization` in hf_quant_config.json of older checkpoints."""

    name = method = "modelopt"
    formats = (ModelOptNVFP4, ModelOptFP8)

    def read(self, quantization: Fields) -> tuple[Format, ...]:
        layers = quantization.mapping("quantized_layers")
        named = [quantization.config.get("quant_algo"), *(layers.mapping(name).config for name in layers.config)]
        for algorithm in (each.get("quant_algo") if isinstance(each, dict) else each for each in named):
            if algorithm not in (*_READ, _MIXED):
                raise InputError(
                    f"`{quantization.prefix}quant_algo` {algorithm!r} cannot be read, of ModelOpt's only "
                    f"{', '.join(_READ)} and mixtures of them; use the checkpoint that it was made from"
                )
        if quantization.has("group_size"):
            quantization.one_of("group_size", NVFP4.group)
        return ModelOptNVFP4(), ModelOptFP8("tensor")

    def has_fp8_cache(self, quantization: Fields, names: Mapping[str, Any]) -> bool:
        """Where scales are stored; without them programs take 1, which is not what the model was checked with."""
        algorithm = quantization.config.get("kv_cache_quant_algo") or quantization.config.get("kv_cache_scheme")
        if isinstance(algorithm, dict):
            scheme = quantization.mapping("kv_cache_scheme")
            scheme.one_of("type", "float")
            scheme.one_of("num_bits", 8)
        elif algorithm not in (None, "FP8", "none"):
            raise InputError(
                f"`{quantization.prefix}kv_cache_quant_algo` {algorithm!r} cannot be read, only FP8; "
                "use the checkpoint that it was made from"
            )
        return bool(algorithm) and any(name.endswith(".k_scale") for name in names)


def cache_scales_renamed(headers: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names that engines have for scales of a cache, one number of one dimension each."""
    found = {}
    for name, tensor in headers.items():
        for ending, ours in _CACHE.items():
            if name.endswith(ending):
                name, tensor = name.removesuffix(ending) + ours, replace(tensor, shape=tensor.shape or (1,))
        found[name] = tensor
    return found


SOURCE = ModelOpt()
