"""Small checkpoints in 4-bit floats, as compressed-tensors stores them."""

from __future__ import annotations

from typing import Any

import torch

from support.random_checkpoint import random_weights

NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True}


def packed_weights(config: dict[str, Any], scales: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The model's weights, projections as compressed-tensors stores them in NVFP4 or MXFP4: any codes, any scales."""
    weights, generator = random_weights(config, seed), torch.Generator().manual_seed(seed)
    for name in [name for name in weights if "_proj" in name]:
        (rows, columns), module = weights.pop(name).shape, name.removesuffix(".weight")
        codes = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
        weights[f"{module}.weight_packed"] = codes
        if scales == "nvfp4":
            sizes = torch.rand(rows, columns // 16, generator=generator) * 400 + 0.01
            weights[f"{module}.weight_scale"] = sizes.to(torch.float8_e4m3fn)
            weights[f"{module}.weight_global_scale"] = torch.rand(1, generator=generator) * 5000 + 5000
        else:
            shape = (rows, columns // 32)
            weights[f"{module}.weight_scale"] = torch.randint(119, 124, shape, generator=generator, dtype=torch.uint8)
    return weights


def compressed_tensors(scales: str, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": NVFP4 if scales == "nvfp4" else MXFP4} | more
    return {
        "quant_method": "compressed-tensors",
        "format": f"{scales}-pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
