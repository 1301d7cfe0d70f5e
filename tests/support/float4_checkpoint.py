"""Small checkpoints in 4-bit floats, as compressed-tensors and ModelOpt store them."""

from __future__ import annotations

from typing import Any

import torch

from llmc.convert.bits import unpack_e2m1
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


def modelopt_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """MLPs in NVFP4, attention in FP8, with the scales that ModelOpt's exporter writes."""
    weights = packed_weights(config, "nvfp4")
    for name in [name for name in weights if name.endswith(".weight_global_scale")]:
        module = name.rpartition(".")[0]
        factor = weights.pop(name).reciprocal().reshape(())
        if ".mlp." in module:
            weights[f"{module}.weight"] = weights.pop(f"{module}.weight_packed")
            weights[f"{module}.weight_scale_2"] = factor
        else:
            codes = weights.pop(f"{module}.weight_packed")
            weights[f"{module}.weight"] = unpack_e2m1(codes)
            weights[f"{module}.weight_scale"] = factor * 100
        weights[f"{module}.input_scale"] = torch.tensor(0.25)
    return weights


MODELOPT = {
    "quant_algo": "MIXED_PRECISION",
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    "quantized_layers": {"model.x": {"quant_algo": "NVFP4", "group_size": 16}, "model.y": {"quant_algo": "FP8"}},
    "producer": {"name": "modelopt", "version": "0.45.0"},
}
