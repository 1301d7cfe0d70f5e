"""NVIDIA's ModelOpt: FP8 with one scale per tensor, and NVFP4, side by side in one model if it says so.

FP8 is `weight` in E4M3, `weight_scale` and `input_scale`, one float32 each. NVFP4 is `weight` U8 [out, in / 2] with two
codes a byte, `weight_scale` in E4M3 [out, in / 16], and `weight_scale_2`, one float32 that multiplies; `input_scale`,
where inputs are rounded, multiplies the scales of 16 of their channels. Which modules are stored how is told by what
they store; the patterns of `ignore` and `exclude_modules` add nothing when it is read.
Source: quant_utils.py and convert_hf_config.py in modelopt/torch/export of TensorRT-Model-Optimizer 0.47.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from llmc.convert.bits import pack_e2m1
from llmc.convert.fields import Fields
from llmc.convert.formats.float4 import NVFP4
from llmc.convert.formats.float_quantized import FloatQuantized
from llmc.convert.formats.format import Format, Parts
from llmc.convert.formats.layout import Layout, NamedSpec
from llmc.convert.quantization_config import MODELOPT_CONFIG
from llmc.convert.quantized_weight import Activations, QuantizedWeight, QuantSpec, TwoLevelScales
from llmc.convert.safetensors_file import StoredTensor
from llmc.convert.tensor_names import ModuleName
from llmc.errors import InputError

_READ = ("FP8", "NVFP4", "W4A16_NVFP4")
# Programs ask who made it, and read nothing if it is somebody else; the version is the one whose spelling this is.
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}
_FP8_CACHE = {"dynamic": False, "num_bits": 8, "type": "float"}
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
        return codes.float() * factor, TwoLevelScales(codes, factor.double().reciprocal())

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        assert weight.two_level is not None
        tensors = {
            f"{module}.weight": pack_e2m1(weight.qweight),
            f"{module}.weight_scale": weight.two_level.codes,
            f"{module}.weight_scale_2": weight.two_level.divisor.double().reciprocal().float().reshape(()),
        }
        return tensors | _input_scale(module, weight)

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        return {"quant_algo": "NVFP4" if spec.activations else "W4A16_NVFP4", "group_size": cls.group}


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

    @classmethod
    def takes(cls, spec: QuantSpec) -> bool:
        return spec.code_type == "float8_e4m3fn" and (spec.block, spec.activations) == ((0, 0), "tensor")

    @classmethod
    def encode(cls, module: str, weight: QuantizedWeight, spec: QuantSpec) -> dict[str, torch.Tensor]:
        tensors = {f"{module}.weight": weight.qweight, f"{module}.weight_scale": weight.scales.float().reshape(())}
        return tensors | _input_scale(module, weight)

    @classmethod
    def config(cls, spec: QuantSpec) -> dict[str, Any]:
        return {"quant_algo": "FP8"}


def _input_scale(module: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    given = weight.activations
    return {} if given is None or given.scale is None else {f"{module}.input_scale": torch.tensor(given.scale)}


class ModelOpt(Layout):
    """`quantization_config` in config.json, and `quantization` in hf_quant_config.json, which older checkpoints have
    alone, and which TensorRT-LLM reads.
    """

    name = method = "modelopt"
    formats = (ModelOptNVFP4, ModelOptFP8)
    stores = "nvfp4, nvfp4-static and fp8-tensor-static"
    readers = "vLLM, SGLang and TensorRT-LLM load them"
    takes_cache_scales = keeps = True

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

    def config(self, schemes: Mapping[str, NamedSpec], modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        modules = list(modules)
        layers: dict[str, dict[str, Any]] = {}
        for module in modules:
            if module in schemes:
                spec = schemes[module].spec
                layers[module] = self.format_of(spec).config(spec)
        kinds = list({str(kind): kind for kind in layers.values()}.values())
        groups = {}
        for number, kind in enumerate(kinds):
            mine = [module for module, given in layers.items() if given == kind]
            groups[f"group_{number}"] = _group(kind) | {"targets": mine if len(kinds) > 1 else ["Linear"]}
        config: dict[str, Any] = {"config_groups": groups, "ignore": _plain(modules, layers)}
        if len(kinds) > 1:
            config |= {"quantized_layers": layers, "quant_algo": _MIXED}
        elif kinds:
            config["quant_algo"] = kinds[0]["quant_algo"]
        cache = {"kv_cache_scheme": _FP8_CACHE} if fp8_cache else {}
        return config | cache | {"producer": _PRODUCER, "quant_method": self.method}

    def beside(self, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        said = {
            "quant_algo": config.get("quant_algo"),
            "kv_cache_quant_algo": "FP8" if "kv_cache_scheme" in config else None,
        }
        if "NVFP4" in str(config.get("quant_algo")):
            said["group_size"] = NVFP4.group
        if "quantized_layers" in config:
            said["quantized_layers"] = config["quantized_layers"]
        said["exclude_modules"] = config["ignore"]
        return {MODELOPT_CONFIG: {"producer": config["producer"], "quantization": said}}

    def cache_scale(self, name: str) -> str:
        for ending, ours in _CACHE.items():
            if name.endswith(ours):
                return name.removesuffix(ours) + ending
        return name

    def obstacle(self, specs: Mapping[str, Collection[QuantSpec]], plain_experts: bool) -> str:
        """As of transformers 5.24."""
        return "it does not read ModelOpt's layout, which vLLM, SGLang and TensorRT-LLM do"


def _group(kind: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of weights, and of inputs if they are rounded."""
    algorithm = kind["quant_algo"]
    numbers = {"dynamic": False, "num_bits": 8 if algorithm == "FP8" else 4, "type": "float"}
    if "group_size" in kind:
        numbers["group_size"] = kind["group_size"]
    inputs = {} if algorithm.startswith("W4A16") else {"input_activations": numbers}
    return inputs | {"weights": numbers}


def _plain(modules: Sequence[str], quantized: Collection[str]) -> list[str]:
    """Patterns of what stays as it is: a block of which nothing is quantized as a whole, routers in any case."""
    found = {"lm_head"}
    for module in modules:
        if module in quantized:
            continue
        block = re.sub(r"\.experts\..*", ".experts", module.rpartition(".")[0])
        found.add(module if any(other.startswith(block) for other in quantized) else f"{block}*")
    if any(ModuleName.parse(module).expert is not None for module in modules):
        found |= {"*.gate", "*.router", "*.shared_expert_gate"}
    return sorted(found)


def cache_scales_renamed(headers: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names that engines have for scales of a cache, one number of one dimension each."""
    found = {}
    for name, tensor in headers.items():
        for ending, ours in _CACHE.items():
            if name.endswith(ending):
                name, tensor = name.removesuffix(ending) + ours, replace(tensor, shape=tensor.shape or (1,))
        found[name] = tensor
    return found


LAYOUT = ModelOpt()
