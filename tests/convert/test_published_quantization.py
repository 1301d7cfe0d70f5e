"""Every published `quantization_config` that we know of is read, or refused for what it has that we do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.model_lines import CONFIGS

from llmc.convert.formats import formats, has_fp8_cache
from llmc.errors import InputError

_MODELOPT = ["modelopt-nvfp4", "modelopt-fp8"]
READ = {
    "fp8": ["native-fp8"],
    "compressed-tensors": ["pack-quantized"],
    "modelopt": _MODELOPT,
    "mxfp4": ["mxfp4-blocks"],
}
OTHERWISE = {
    "Qwen--Qwen3-32B-FP8-Static-PerTensor": _MODELOPT,  # names no method
    "moonshotai--Kimi-K3": ["mxfp4-pack-quantized"],
    "nvidia--DeepSeek-V4-Flash-NVFP4": ["modelopt-nvfp4", "native-fp8"],
    "nvidia--DeepSeek-V4-Pro-NVFP4": ["modelopt-nvfp4", "native-fp8"],
}
REFUSED = {"nvidia--MiniMax-M3-NVFP4": "`quantization_config.quant_algo` 'MXFP8' cannot be read"}


def described(path: Path) -> dict[str, Any] | None:
    config = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] | None = config.get("quantization_config") or config.get("text_config", {}).get(
        "quantization_config"
    )
    return found


PUBLISHED = {path.stem: found for path in sorted(CONFIGS.glob("*.json")) if (found := described(path))}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_quantization_configs(name: str) -> None:
    config = {"quantization_config": PUBLISHED[name]}
    if name in REFUSED:
        with pytest.raises(InputError) as caught:
            formats(config)
        assert REFUSED[name] in str(caught.value) and "\n" not in str(caught.value)
        return
    expected = OTHERWISE.get(name) or READ[PUBLISHED[name]["quant_method"]]
    assert [known.name for known in formats(config)] == expected
    scales = {"model.layers.0.self_attn.k_scale": None}
    quantized = bool(PUBLISHED[name].get("kv_cache_scheme") or PUBLISHED[name].get("kv_cache_quant_algo"))
    assert has_fp8_cache(config, scales) is quantized
    assert not has_fp8_cache(config, {})  # all of them that have one are ModelOpt's: no scales, no cache of codes


def test_there_are_some() -> None:
    assert len(PUBLISHED) >= 40 and PUBLISHED.keys() >= OTHERWISE.keys() | REFUSED.keys()
