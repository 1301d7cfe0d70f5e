"""The `quantization_config` of config.json in compressed-tensors' terms, so that other programs load the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from llmc.quant.schemes import scheme


def quantization_config(schemes: dict[str, str], all_modules: Iterable[str]) -> dict[str, Any]:
    """schemes: quantised module → scheme name; all_modules: every linear layer that could have been.

    Targets and ignored modules are regular expressions that match exactly those modules.
    """
    # transformers fuses experts, finds no target that matches, and decodes them by the first group.
    of_experts = {given for module, given in schemes.items() if ".experts." in module}
    used = sorted(set(schemes.values()), key=lambda name: (name not in of_experts, name))
    groups = {}
    for number, name in enumerate(used):
        group = scheme(name).config_group()
        targets = patterns([module for module, given in schemes.items() if given == name])
        nothing = {"input_activations": None, "output_activations": None}
        groups[f"group_{number}"] = {"targets": targets} | nothing | group
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*patterns([module for module in all_modules if module not in schemes]), "lm_head"],
        "kv_cache_scheme": None,
    }


def patterns(modules: list[str]) -> list[str]:
    """`re:` patterns for module names, one per kind of module, with its layers listed and experts left open."""
    layers: dict[str, set[int]] = {}
    for module in modules:
        match = re.fullmatch(r"(?:model\.)?layers\.(\d+)\.(.+)", module)
        assert match, module
        kind = re.sub(r"\.experts\.\d+\.", ".experts.*.", match[2])
        layers.setdefault(kind, set()).add(int(match[1]))
    result = []
    for kind, numbers in layers.items():
        inside = re.escape(kind).replace(r"\.experts\.\*\.", r"\.experts\.\d+\.")
        result.append(rf"re:.*layers\.({'|'.join(map(str, sorted(numbers)))})\.{inside}$")
    return result
