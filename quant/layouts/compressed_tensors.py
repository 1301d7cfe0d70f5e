"""compressed-tensors: any scheme for any module; transformers, vLLM and SGLang load it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from llmc.convert.quantised_weight import QuantisedWeight
from llmc.quant.layouts.layout import DEFAULT_LAYOUT, Layout
from llmc.quant.layouts.patterns import patterns
from llmc.quant.schemes import scheme
from llmc.quant.schemes.scheme import Scheme

_CACHE_SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


class CompressedTensors(Layout):
    name = DEFAULT_LAYOUT
    stores = "all schemes but those with dynamic act-order, which compressed-tensors has dropped"
    readers = "transformers loads them where the package of that name is installed"

    takes_cache_scales = True

    def takes(self, scheme: Scheme) -> bool:
        return not scheme.dynamic_groups

    def tensors(self, module: str, scheme: Scheme, weight: QuantisedWeight) -> dict[str, torch.Tensor]:
        return scheme.stored(module, weight)

    def config(self, schemes: dict[str, str], all_modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        """Targets and ignored modules are regular expressions that match exactly those modules."""
        # transformers fuses experts, finds no target that matches, and decodes them by the first group.
        of_experts = {given for module, given in schemes.items() if ".experts." in module}
        used = sorted(set(schemes.values()), key=lambda name: (name not in of_experts, name))
        groups = {}
        for number, name in enumerate(used):
            group = scheme(name).config_group()
            targets = [f"re:{each}" for each in patterns(module for module, given in schemes.items() if given == name)]
            nothing = {"input_activations": None, "output_activations": None}
            groups[f"group_{number}"] = {"targets": targets} | nothing | group
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


LAYOUT = CompressedTensors()
