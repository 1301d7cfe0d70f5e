"""FP8 checkpoints with `quant_method: fp8`, in every published spelling of their configuration and their scales."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from support.graph_comparison import compare_with_torch
from support.quantized_checkpoint import DEEPSEEK, quantized_copy
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.plugin_weights import stored_in_engine
from llmc.convert.graph.weight import WeightTensor, WeightView
from llmc.convert.targets import target
from llmc.errors import InputError
from llmc.quant.layerwise import QuantizeOptions

WIDE = LLAMA | {"hidden_size": 256, "intermediate_size": 384, "num_key_value_heads": 8}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
TENSOR = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
# As DeepSeek-V3, V3.1 and V3.2, MiniMax-M2, Qwen3, Step-3.7 and GLM-5 say it.
SPELLINGS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "deepseek": ({"fmt": "e4m3"}, torch.float32),
    "ue8m0": ({"fmt": "e4m3", "scale_fmt": "ue8m0"}, torch.float32),
    "ue8m0 in its own type": ({"fmt": "e4m3", "scale_fmt": "ue8m0"}, torch.float8_e8m0fnu),
    "minimax": (
        {"fmt": "float8_e4m3fn", "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
        torch.float32,
    ),
    "qwen3": ({"fmt": "e4m3"}, torch.bfloat16),
    "step": ({}, torch.float32),
    "glm": ({"fmt": "e4m3", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}, torch.float32),
}


def fp8_weights(parts: dict[str, torch.Tensor], size: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's weights, projections as codes with scales; `parts` are those of one scale, beside the weight."""
    weights, generator = random_weights(WIDE), torch.Generator().manual_seed(0)
    for name in [name for name in weights if "_proj" in name]:
        rows, columns = weights[name].shape
        weights[name] = (weights[name].float() * 64).clamp(-448, 448).to(torch.float8_e4m3fn)
        if size:
            exponents = torch.randint(-9, -5, (-(-rows // size), -(-columns // size)), generator=generator)
            weights[f"{name}_scale_inv"] = torch.exp2(exponents.float()).to(dtype)
        weights |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    return weights


@pytest.mark.parametrize("name", SPELLINGS)
def test_blocks_in_every_spelling(tmp_path: Path, name: str) -> None:
    """Read by the formula, and kept: same codes, same scales, whatever type those have."""
    spelling, dtype = SPELLINGS[name]
    weights = fp8_weights({}, 128, dtype)
    write_checkpoint(tmp_path / "source", WIDE | {"quantization_config": BLOCKS | spelling}, weights)
    source = Checkpoint.open(tmp_path / "source")
    module = "model.layers.1.mlp.down_proj"
    wide = weights[f"{module}.weight_scale_inv"].float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(source.tensor(f"{module}.weight"), weights[f"{module}.weight"].float() * wide)
    kept = quantized_copy(source, {}, tmp_path)
    for each in (name for name in weights if name.endswith("_proj.weight")):
        before, after = source.quantized_tensor(each), kept.quantized_tensor(each)
        assert before is not None and after is not None and before.kind == after.kind
        assert torch.equal(before.qweight.view(torch.uint8), after.qweight.view(torch.uint8))
        assert torch.equal(before.scales.float(), after.scales.float())


def test_a_type_of_scales_that_no_plugin_reads_is_one_line(tmp_path: Path) -> None:
    spelling, dtype = SPELLINGS["ue8m0 in its own type"]
    write_checkpoint(tmp_path, WIDE | {"quantization_config": BLOCKS | spelling}, fp8_weights({}, 128, dtype))
    names = ("model.layers.1.mlp.down_proj.weight",)
    weight = WeightTensor(Checkpoint.open(tmp_path), names, WeightView(), "down", ir.DataType.FLOAT)
    why = "scales in float8_e8m0fnu: the plugins' kernels read bfloat16, float16, float32; say `plugins: false`"
    with pytest.raises(InputError, match=f"^{re.escape(f'{names[0]}: {why}')}$"):
        stored_in_engine(weight)


@pytest.mark.parametrize("names", [("weight_scale_inv", "activation_scale"), ("weight_scale", "input_scale")])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_scale_for_a_tensor_and_one_for_its_inputs(
    tmp_path: Path, names: tuple[str, str], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    values = torch.tensor([2.0**-7 * 1.25, 0.03125]).to(dtype)
    weights = fp8_weights({name: value.reshape(shape) for name, value in zip(names, values, strict=True)}, None, dtype)
    write_checkpoint(tmp_path / "source", WIDE | {"quantization_config": TENSOR}, weights)
    source, name = Checkpoint.open(tmp_path / "source"), "model.layers.0.self_attn.q_proj"
    weight = source.quantized(name)
    assert weight is not None and weight.block == (256, 256) and source.kind(f"{name}.weight") == weight.kind
    assert torch.equal(weight.dequantize(), weights[f"{name}.weight"].float() * values[0].float())
    assert weight.activations is not None and weight.activations == source.activations(name)
    assert weight.activations.scale == values[1].float().item()
    kept = quantized_copy(source, {}, tmp_path)
    again = kept.quantized(name)
    assert again is not None and (again.kind, again.activations) == (weight.kind, weight.activations)
    assert torch.equal(again.qweight.view(torch.uint8), weight.qweight.view(torch.uint8))
    assert again.scales.item() == weight.scales.item()


def test_one_scale_for_a_tensor_reads_as_in_transformers(tmp_path: Path) -> None:
    parts = {"weight_scale_inv": torch.tensor(0.01), "activation_scale": torch.tensor(0.5)}
    weights = fp8_weights(parts, None, torch.float32)
    write_checkpoint(tmp_path, WIDE | {"quantization_config": TENSOR}, weights)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=None, activation_scheme="static"),
        dtype=torch.float32,
    ).state_dict()
    checkpoint = Checkpoint.open(tmp_path)
    names = [name for name in weights if name.endswith("_proj.weight")]
    assert len(names) == 14
    assert all(torch.equal(checkpoint.tensor(name), theirs[name]) for name in names)


def test_static_inputs_without_their_scale_are_refused(tmp_path: Path) -> None:
    weights = fp8_weights({"weight_scale_inv": torch.tensor(0.01)}, None, torch.float32)
    write_checkpoint(tmp_path, WIDE | {"quantization_config": TENSOR}, weights)
    with pytest.raises(InputError, match=r"config\.json and activation_scale disagree"):
        Checkpoint.open(tmp_path)


def test_blocks_stay_as_they_are_in_the_layout_of_their_own(tmp_path: Path) -> None:
    weights = fp8_weights({}, 128, torch.bfloat16)
    write_checkpoint(tmp_path / "source", WIDE | {"quantization_config": BLOCKS}, weights)
    kept = quantized_copy(Checkpoint.open(tmp_path / "source"), {}, tmp_path, QuantizeOptions(layout="native-fp8"))
    stored: dict[str, torch.Tensor] = {}
    for file in kept.shards:
        stored |= load_file(file)
    for name in (name for name in weights if "_proj" in name):
        same = stored[name].float() if name.endswith("inv") else stored[name].view(torch.uint8)
        assert torch.equal(same, weights[name].float() if name.endswith("inv") else weights[name].view(torch.uint8))


def test_what_the_latent_cache_is_expanded_by_has_no_inputs_to_round(tmp_path: Path) -> None:
    """Attention on the latent cache has none, and so its graphs would compute something else."""
    weights = random_weights(DEEPSEEK)
    for name in [name for name in weights if ".self_attn." in name and "proj" in name]:
        weights[name] = (weights[name] * 256).clamp(-448, 448).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = torch.tensor(2.0**-8)
        weights[f"{name.removesuffix('weight')}activation_scale"] = torch.tensor(0.02)
    write_checkpoint(tmp_path / "source", DEEPSEEK | {"quantization_config": TENSOR}, weights)
    kept = quantized_copy(Checkpoint.open(tmp_path / "source"), {}, tmp_path)
    for module, rounded in (("kv_b_proj", None), ("o_proj", "tensor")):
        name = f"model.layers.1.self_attn.{module}"
        weight, kind = kept.quantized(name), kept.kind(f"{name}.weight")
        assert weight is not None and kind is not None and kind == weight.kind and kind.activations == rounded
        assert (kept.activations(name) is None) == (rounded is None)
    portable = target("onnx")
    compare_with_torch(kept, portable.build(kept, portable.Options(), kept.path, lambda *_: None))
