"""What a checkpoint says about how it is quantized, where it does not say it in config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.convert.folder import read_json
from llmc.errors import InputError

QUANTIZE_CONFIG = "quantize_config.json"  # AutoGPTQ's, before transformers had a place for it
MODELOPT_CONFIG = "hf_quant_config.json"  # older exports of NVIDIA's ModelOpt have it alone
AWQ_CONFIG = "quant_config.json"  # older AutoAWQ's
_INSTEAD = "give the checkpoint that it was made from"


def with_quantization_config(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a folder, completed; InputError for what is described elsewhere and cannot be read."""
    if config.get("quantization_config") is not None:
        return config
    if isinstance(config.get("quantization"), dict):
        raise InputError(f"{path / 'config.json'}: `quantization` is MLX's, which is not read; {_INSTEAD}")
    if isinstance(config.get("compression_config"), dict):
        raise InputError(
            f"{path / 'config.json'}: `compression_config` is what early versions of compressed-tensors wrote, which "
            f"is not read; save the model again with a recent one, or {_INSTEAD}"
        )
    if (path / MODELOPT_CONFIG).exists():
        quantization = read_json(path / MODELOPT_CONFIG).get("quantization")
        if not isinstance(quantization, dict):
            raise InputError(f"{path / MODELOPT_CONFIG}: `quantization` is missing; download the file again")
        return {**config, "quantization_config": {**quantization, "quant_method": "modelopt"}}
    if (path / AWQ_CONFIG).exists():
        described = read_json(path / AWQ_CONFIG)
        if "w_bit" not in described:
            raise InputError(f"{path / AWQ_CONFIG}: quantized in a way that is not read; {_INSTEAD}")
        known = {"quant_method": "awq", "bits": described["w_bit"], "version": described.get("version")}
        return {**config, "quantization_config": known}
    if not (path / QUANTIZE_CONFIG).exists():
        return config
    described = read_json(path / QUANTIZE_CONFIG)
    method = described.get("quant_method", "gptq")
    if method != "gptq" or described.get("is_marlin_format") or "bits" not in described:
        kind = "GPTQ for Marlin" if method == "gptq" and "bits" in described else repr(method)
        raise InputError(f"{path / QUANTIZE_CONFIG}: quantized in a way that is not read ({kind}); {_INSTEAD}")
    return {**config, "quantization_config": {**described, "quant_method": "gptq"}}
