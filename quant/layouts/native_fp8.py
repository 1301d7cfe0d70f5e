"""DeepSeek's own layout: E4M3 and one float32 scale per 128x128 block, as DeepSeek-V3 and R1 are published."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from llmc.convert.quantized_weight import QuantizedWeight
from llmc.quant.layouts.layout import Layout
from llmc.quant.schemes.scheme import Scheme


class NativeFP8(Layout):
    """Programs that load it round inputs, too, 128 channels of a token at a time, whether the scheme says so or not."""

    name = "native-fp8"
    stores = "fp8-block and fp8-block-dynamic"
    readers = "they are as DeepSeek publishes its models, and transformers loads them"

    def takes(self, scheme: Scheme) -> bool:
        return scheme.name in ("fp8-block", "fp8-block-dynamic")

    def tensors(self, module: str, scheme: Scheme, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
        return {f"{module}.weight": weight.qweight, f"{module}.weight_scale_inv": weight.scales.float()}

    def config(self, schemes: dict[str, str], all_modules: Iterable[str], fp8_cache: bool) -> dict[str, Any]:
        config: dict[str, Any] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }
        plain = [module for module in all_modules if module not in schemes]
        return config | ({"modules_to_not_convert": plain} if plain else {})


LAYOUT = NativeFP8()
