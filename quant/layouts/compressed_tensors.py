"""compressed-tensors: any scheme for any module; transformers, vLLM and SGLang load it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from llmc.convert.quantized_weight import QuantizedWeight
from llmc.convert.tensor_names import ModuleName
from llmc.quant.layouts.layout import DEFAULT_LAYOUT, Layout
from llmc.quant.layouts.patterns import patterns
from llmc.quant.schemes import scheme
from llmc.quant.schemes.scheme import Scheme

_CACHE_SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
_NO_EXPERTS = "re:experts-as-they-are$"  # names experts, and matches no module


class CompressedTensors(Layout):
    name = DEFAULT_LAYOUT
    stores = "all schemes but those with dynamic act-order, which compressed-tensors has dropped"
    readers = "transformers loads them where the package of that name is installed"

    takes_cache_scales = True

    def takes(self, scheme: Scheme) -> bool:
        return not scheme.dynamic_groups

    def obstacle(self, schemes: Mapping[str, Collection[str]], plain_experts: bool) -> str:
        """As of transformers 5.24 with compressed-tensors 0.20."""
        loaded = {role: names for role, names in schemes.items() if role != "mtp"}  # it leaves MTP layers alone
        experts = loaded.get("experts", ())
        if any(not scheme(name).symmetric for names in loaded.values() for name in names):
            return "it cannot read zero points"
        if len(experts) + plain_experts > 1 and not all(map(_is_float, experts)):
            return "it wants all experts stored in one way"
        if any(name.startswith("fp8-block") for name in experts):
            return "it takes FP8 experts with scales per channel or tensor, or in blocks in the layout native-fp8"
        return ""

    def tensors(self, module: str, scheme: Scheme, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
        return scheme.stored(module, weight)

    def config(self, schemes: dict[str, str], all_modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        """Targets and ignored modules are regular expressions that match exactly those modules."""
        all_modules = list(all_modules)
        experts = _experts(schemes, all_modules)
        # transformers fuses experts and decodes those of all layers by the first group that names some.
        used = sorted(set(schemes.values()), key=lambda name: (name not in experts, name))
        parts = [
            ([f"re:{each}" for each in patterns(module for module, given in schemes.items() if given == name)], name)
            for name in used
        ]
        if experts and (len(experts) > 1 or None in experts) and not all(map(_is_float, used)):
            # By a group of integers it would drop experts that are floats, or take codes for others; by one of floats
            # it takes floats as they are, and stops at integers.
            parts.insert(0, ([_NO_EXPERTS], "fp8-channel"))
        groups = {}
        for number, (targets, name) in enumerate(parts):
            nothing = {"input_activations": None, "output_activations": None}
            groups[f"group_{number}"] = {"targets": targets} | nothing | scheme(name).config_group()
        ignored = [f"re:{each}" for each in patterns(module for module in all_modules if module not in schemes)]
        formats = {group["format"] for group in groups.values()}
        return {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": [*ignored, "lm_head"],
            "kv_cache_scheme": _CACHE_SCHEME if fp8_cache else None,
        }


def _experts(schemes: dict[str, str], all_modules: list[str]) -> set[str | None]:
    """In which ways routed experts are stored, without those of MTP layers, which transformers does not load."""
    mtp = {module.removesuffix("eh_proj") for module in all_modules if module.endswith(".eh_proj")}
    return {
        schemes.get(module)
        for module in all_modules
        if ModuleName.parse(module).expert is not None and not module.startswith(tuple(mtp))
    }


def _is_float(name: str) -> bool:
    return scheme(name).code_type == "float8_e4m3fn"


LAYOUT = CompressedTensors()
