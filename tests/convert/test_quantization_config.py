"""Quantized checkpoints whose config.json does not say how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.random_checkpoint import LLAMA, random_checkpoint, random_weights, write_checkpoint

from llmc.convert.bits import pack, unpack
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats.gptq import GPTQ
from llmc.errors import InputError
from llmc.quant.gptq import solve
from llmc.quant.schemes.integer import Integer


def test_what_autogptq_said_in_a_file_of_its_own_is_read(tmp_path: Path) -> None:
    """Version 1 of the layout; checkpoints of its time have no `quantization_config`, and names like this one."""
    module, chosen = "model.layers.0.mlp.gate_proj", Integer(4, 32)
    weights = random_weights(LLAMA)
    plain = weights.pop(f"{module}.weight").float()
    weight = solve(plain[None], torch.eye(64)[None], chosen).weight()
    stored = GPTQ.encode(module, weight, chosen.spec)
    stored[f"{module}.qzeros"] = pack(unpack(stored[f"{module}.qzeros"], 4, 80) - 1, 4)
    write_checkpoint(tmp_path, LLAMA, weights | stored)
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-32g.safetensors")
    described = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": True}
    (tmp_path / "quantize_config.json").write_text(json.dumps(described))
    checkpoint = Checkpoint.open(tmp_path)
    read = checkpoint.quantized(module)
    assert read is not None and torch.equal(read.qweight, weight.qweight)
    torch.testing.assert_close(read.dequantize(), weight.dequantize(), rtol=1e-3, atol=1e-6)  # scales are float16
    assert tmp_path / "quantize_config.json" in checkpoint.files()


QUANTIZED_ELSEWHERE = {
    "quant_config.json": ({"zero_point": True}, "in a way that is not read"),
    "quantize_config.json": ({"bits": 4, "is_marlin_format": True}, "GPTQ for Marlin"),
}


@pytest.mark.parametrize("name", QUANTIZED_ELSEWHERE)
def test_quantized_as_another_file_says(tmp_path: Path, name: str) -> None:
    path = random_checkpoint(tmp_path, LLAMA)
    content, said = QUANTIZED_ELSEWHERE[name]
    (path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{name}: quantized .*{said}.* give the checkpoint that it was made from"):
        Checkpoint.open(path)


@pytest.mark.parametrize(("field", "said"), [("quantization", "MLX"), ("compression_config", "early versions")])
def test_quantized_as_another_field_says(tmp_path: Path, field: str, said: str) -> None:
    write_checkpoint(tmp_path, LLAMA | {field: {"bits": 4, "group_size": 64}}, random_weights(LLAMA))
    with pytest.raises(InputError, match=rf"`{field}` is .*{said}"):
        Checkpoint.open(tmp_path)
