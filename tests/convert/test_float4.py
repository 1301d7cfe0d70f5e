"""4-bit floats on disk: against compressed-tensors, transformers (gpt-oss) and the formula (ModelOpt)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStatus,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from safetensors.torch import load_file, save_file
from support.float4_checkpoint import MODELOPT, MXFP4, NVFP4, compressed_tensors, modelopt_weights, packed_weights
from support.quantized_checkpoint import DEEPSEEK, quantized_copy
from support.random_checkpoint import LLAMA, write_checkpoint
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from llmc.convert.bits import pack_e2m1, unpack_e2m1
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import formats, layout
from llmc.convert.formats.float4 import MXFP4 as StoredMXFP4
from llmc.convert.formats.float4 import NVFP4 as StoredNVFP4
from llmc.convert.formats.mxfp4 import MXFP4Blocks
from llmc.convert.model import CausalLM
from llmc.convert.quantized_weight import Activations, QuantizedWeight
from llmc.convert.safetensors_file import read_header
from llmc.errors import InputError
from llmc.job import _kinds_of_experts
from llmc.quant.gptq import round_to_nearest
from llmc.quant.schemes import scheme
from llmc.quant.shard import joined

DENSE = LLAMA | {"intermediate_size": 96}
MODULE = "model.layers.1.mlp.down_proj"


def values(weights: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """float32, by the formula."""
    codes = weights[f"{module}.weight_packed"]
    plain = unpack_fp4_from_uint8(codes, codes.shape[0], codes.shape[1] * 2, torch.float32)
    scales = weights[f"{module}.weight_scale"]
    if f"{module}.weight_global_scale" in weights:
        return plain * (scales.float() / weights[f"{module}.weight_global_scale"]).repeat_interleave(16, 1)
    return plain * torch.exp2(scales.float() - 127).repeat_interleave(32, 1)


def test_codes_are_those_of_the_package() -> None:
    packed = torch.arange(256, dtype=torch.int32).to(torch.uint8).reshape(2, 128)
    theirs = unpack_fp4_from_uint8(packed, 2, 256, torch.float32)
    ours = unpack_e2m1(packed)
    assert torch.equal(ours.float(), theirs) and torch.equal(ours.float().signbit(), theirs.signbit())
    assert torch.equal(pack_e2m1(ours), packed) and torch.equal(pack_fp4_to_uint8(theirs), packed)


@pytest.mark.parametrize("scales", ["nvfp4", "mxfp4"])
def test_reads_back_as_in_the_package(tmp_path: Path, scales: str) -> None:
    weights = packed_weights(DENSE, scales)
    write_checkpoint(tmp_path, DENSE | {"quantization_config": compressed_tensors(scales)}, weights)
    checkpoint = Checkpoint.open(tmp_path)
    weight = checkpoint.quantized(MODULE)
    assert weight is not None and checkpoint.kind(f"{MODULE}.weight") == weight.kind
    assert (weight.code_type, weight.bits, weight.block) == ("float4_e2m1fn", 4, (1, 16 if scales == "nvfp4" else 32))
    assert torch.equal(checkpoint.tensor(f"{MODULE}.weight"), values(weights, MODULE))
    args = QuantizationArgs(**(NVFP4 if scales == "nvfp4" else MXFP4))
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=f"{scales}-pack-quantized")
    stored = {name.rpartition(".")[2]: tensor for name, tensor in weights.items() if name.startswith(f"{MODULE}.")}
    theirs = BaseCompressor.get_value_from_registry(f"{scales}-pack-quantized").decompress(stored, scheme)["weight"]
    assert theirs.dtype == torch.bfloat16  # rounds what it multiplies, too
    torch.testing.assert_close(theirs.float(), weight.dequantize(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("scales", ["nvfp4", "mxfp4"])
def test_is_kept_bit_for_bit_and_loads_in_transformers(tmp_path: Path, scales: str) -> None:
    weights = packed_weights(DENSE, scales)
    config = compressed_tensors(scales)
    write_checkpoint(tmp_path / "source", DENSE | {"quantization_config": config}, weights)
    kept = quantized_copy(Checkpoint.open(tmp_path / "source"), {}, tmp_path)
    stored: dict[str, torch.Tensor] = {}
    for file in kept.shards:
        stored |= load_file(file)
    assert stored.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(stored[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
    ids = torch.arange(40)[None]
    theirs = AutoModelForCausalLM.from_pretrained(
        kept.path, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        expected = theirs(ids).logits
    ours = CausalLM.load(kept)
    found = ours.logits(ours.hidden(ids))
    bound = 1e-5 if scales == "mxfp4" else 2e-2  # the package rounds NVFP4 to bfloat16
    assert ((expected - found).abs().max() / expected.abs().max()).item() < bound


@pytest.mark.parametrize("name", ["nvfp4-static", "mxfp4-dynamic"])
def test_inputs_are_rounded_as_the_package_rounds_them(name: str) -> None:
    """By what is stored, and by config.json; groups of zeros, and inputs far below and above all others among them."""
    chosen = scheme(name)
    x = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(-5, 2, 128)
    x[0, 0, :32] = 0
    activations = chosen.activations.at(x.abs().max().item())
    weight = replace(round_to_nearest(torch.randn(16, 128), chosen), activations=activations)
    stored_as = layout("compressed-tensors").format_of(chosen.spec)
    stored, config = stored_as.encode("m", weight, chosen.spec), stored_as.config(chosen.spec)
    preset = preset_name_to_scheme(name.partition("-")[0].upper(), ["Linear"]).input_activations
    args = QuantizationArgs(**config["input_activations"])
    same = ("num_bits", "type", "strategy", "group_size", "symmetric", "dynamic", "scale_dtype")
    assert all(getattr(args, field) == getattr(preset, field) for field in same)
    linear = torch.nn.Linear(128, 4)
    linear.quantization_status = QuantizationStatus.COMPRESSED
    if name == "nvfp4-static":
        linear.input_global_scale = stored["m.input_global_scale"]
        assert 0.5 < x.abs().max() * linear.input_global_scale / (6 * 448) <= 1
    x[1] *= 10  # more than calibration has seen
    assert torch.equal(forward_quantize(linear, x, "input", args), activations.rounded(x))


def test_the_scale_of_inputs_is_kept_bit_for_bit(tmp_path: Path) -> None:
    weights, generator = packed_weights(DENSE, "nvfp4"), torch.Generator().manual_seed(1)
    for name in [name for name in weights if name.endswith(".weight_packed")]:
        scale = torch.rand(1, generator=generator) * 1000
        weights[name.replace("weight_packed", "input_global_scale")] = scale
    config = compressed_tensors("nvfp4", input_activations=NVFP4 | {"dynamic": "local"})
    source = Checkpoint.open(write_checkpoint(tmp_path / "source", DENSE | {"quantization_config": config}, weights))
    assert source.activations(MODULE).scale == 1 / weights[f"{MODULE}.input_global_scale"].double().item()
    kept = quantized_copy(source, {}, tmp_path)
    stored = {name: tensor for file in kept.shards for name, tensor in load_file(file).items()}
    assert stored.keys() == weights.keys()
    for name in weights:
        if name.endswith("input_global_scale"):
            assert torch.equal(stored[name], weights[name]), name
    assert kept.kind(f"{MODULE}.weight").activations == "nvfp4"
    weights[f"{MODULE}.input_global_scale"] = torch.ones(2)
    with pytest.raises(InputError, match=r"input_global_scale must be one F32, and is F32 \[2\]"):
        Checkpoint.open(write_checkpoint(tmp_path / "other", DENSE | {"quantization_config": config}, weights))


@pytest.mark.parametrize("scales", ["nvfp4", "mxfp4"])
def test_what_llmc_makes_is_what_the_package_makes_of_its_scales(scales: str) -> None:
    """Codes, spelling and config.json; and it decodes every weight to the same number."""
    weight, chosen = 0.02 * torch.randn(48, 96, generator=torch.Generator().manual_seed(0)), scheme(scales)
    made = round_to_nearest(weight, chosen)
    stored_as = layout("compressed-tensors").format_of(chosen.spec)
    ours = {name.removeprefix("m."): tensor for name, tensor in stored_as.encode("m", made, chosen.spec).items()}
    config = stored_as.config(chosen.spec)
    preset = preset_name_to_scheme(f"{scales.upper()}A16", ["Linear"])
    args = QuantizationArgs(**config["weights"])
    same = ("num_bits", "type", "strategy", "group_size", "symmetric", "dynamic", "scale_dtype")
    assert all(getattr(args, name) == getattr(preset.weights, name) for name in same)
    package = BaseCompressor.get_value_from_registry(config["format"])
    given = {"weight": weight, "weight_scale": made.scales}
    if made.two_level is not None:
        given["weight_scale"] = made.two_level.codes.float()
        given["weight_global_scale"] = made.two_level.divisor
    theirs = package.compress(given, preset)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"weight_packed"}:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name].float(), theirs[name].float())
    codes = unpack_e2m1(ours["weight_packed"]).float(), unpack_e2m1(theirs["weight_packed"]).float()
    assert torch.equal(*codes)  # but for the sign of zeros
    decoded = package.decompress(ours, preset)["weight"]
    assert decoded.dtype == torch.bfloat16 and torch.equal(decoded.float(), made.dequantize())


def test_a_rule_quantizes_it_anew(tmp_path: Path) -> None:
    weights = packed_weights(DENSE, "mxfp4")
    config = compressed_tensors("mxfp4")
    write_checkpoint(tmp_path / "source", DENSE | {"quantization_config": config}, weights)
    kept = quantized_copy(Checkpoint.open(tmp_path / "source"), {"dense_mlp": "int4-g32"}, tmp_path)
    assert kept.kind(f"{MODULE}.weight").code_type == "int4"
    assert kept.kind("model.layers.1.self_attn.q_proj.weight").code_type == "float4_e2m1fn"
    ours, ids = CausalLM.load(kept), torch.arange(40)[None]
    theirs = AutoModelForCausalLM.from_pretrained(kept.path, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = theirs(ids).logits.float()
    found = ours.logits(ours.hidden(ids))
    assert ((expected - found).abs().max() / expected.abs().max()).item() < 5e-2


# In config.json as today, without the method (Qwen3-32B-FP8-Static-PerTensor), and in a file of its own.
WHERE = ("config.json", "config.json, no method", "hf_quant_config.json")


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("cache", [False, True])
def test_modelopt(tmp_path: Path, where: str, cache: bool) -> None:
    weights, config, source = modelopt_weights(DENSE), dict(DENSE), tmp_path / "source"
    if cache:
        for layer in range(2):
            weights[f"model.layers.{layer}.self_attn.k_proj.k_scale"] = torch.tensor(0.5)
            weights[f"model.layers.{layer}.self_attn.v_proj.v_scale"] = torch.tensor([0.25])
    if where != "hf_quant_config.json":
        config["quantization_config"] = MODELOPT | ({} if "no method" in where else {"quant_method": "modelopt"})
    write_checkpoint(source, config, weights)
    if where == "hf_quant_config.json":
        content = {"producer": MODELOPT["producer"], "quantization": MODELOPT | {"exclude_modules": ["lm_head"]}}
        (source / where).write_text(json.dumps(content))
    checkpoint = Checkpoint.open(source)
    assert checkpoint.spec.fp8_cache is cache
    assert checkpoint.cache_scales(1) == ({"k_scale": 0.5, "v_scale": 0.25} if cache else {})
    codes = unpack_fp4_from_uint8(weights[f"{MODULE}.weight"], 64, 96, torch.float32)
    scales = weights[f"{MODULE}.weight_scale"].float() * weights[f"{MODULE}.weight_scale_2"]
    assert torch.equal(checkpoint.tensor(f"{MODULE}.weight"), codes * scales.repeat_interleave(16, 1))
    assert checkpoint.activations(MODULE) == Activations("nvfp4", 0.25)
    attention = "model.layers.0.self_attn.q_proj"
    plain = weights[f"{attention}.weight"].float() * weights[f"{attention}.weight_scale"]
    assert torch.equal(checkpoint.tensor(f"{attention}.weight"), plain)
    assert checkpoint.activations(attention).scale == 0.25
    kept = quantized_copy(checkpoint, {}, tmp_path)
    assert not (kept.path / "hf_quant_config.json").exists()
    assert kept.spec.fp8_cache is cache and kept.cache_scales(1) == checkpoint.cache_scales(1)
    for module in (MODULE, attention):
        before, after = checkpoint.quantized(module), kept.quantized(module)
        assert before.kind == after.kind and before.activations == after.activations
        assert torch.equal(before.qweight.view(torch.uint8), after.qweight.view(torch.uint8))
        torch.testing.assert_close(before.scales, after.scales, rtol=2**-22, atol=0)
    stored: dict[str, torch.Tensor] = {}
    for file in kept.shards:
        stored |= load_file(file)
    same = stored[f"{MODULE}.weight_scale"].view(torch.uint8), weights[f"{MODULE}.weight_scale"].view(torch.uint8)
    assert torch.equal(*same)


def test_modelopt_is_stored_as_the_package_would_convert_it(tmp_path: Path) -> None:
    weights = modelopt_weights(DENSE)
    parts = {name: weights[name] for name in weights if name.startswith(f"{MODULE}.")}
    theirs = ModelOptNvfp4Converter(targets=["re:.*_proj$"]).process(parts)
    config = DENSE | {"quantization_config": MODELOPT | {"quant_method": "modelopt"}}
    weight = Checkpoint.open(write_checkpoint(tmp_path, config, weights)).quantized(MODULE)
    assert weight is not None
    ours = StoredNVFP4.encode(MODULE, weight, weight.kind)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor.view(torch.uint8), theirs[name].reshape(tensor.shape).view(torch.uint8))


REFUSED = {
    "AWQ": ({"quant_algo": "W4A8_AWQ"}, "quant_algo` 'W4A8_AWQ' cannot be read, of ModelOpt's only FP8, NVFP4"),
    "MXFP8 inside": (
        {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"m": {"quant_algo": "MXFP8"}}},
        "quant_algo` 'MXFP8' cannot be read",
    ),
    "groups": ({"quant_algo": "NVFP4", "group_size": 32}, "group_size` must be 16, not 32"),
    "cache": ({"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"}, "kv_cache_quant_algo` 'NVFP4' cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_modelopt_has_beyond_is_refused_by_name(tmp_path: Path, name: str) -> None:
    quantization, said = REFUSED[name]
    config = DENSE | {"quantization_config": quantization | {"quant_method": "modelopt"}}
    write_checkpoint(tmp_path, config, modelopt_weights(DENSE))
    with pytest.raises(InputError) as caught:
        Checkpoint.open(tmp_path)
    assert said in str(caught.value) and "config.json: `quantization_config." in str(caught.value)


def test_mxfp4_of_gpt_oss_is_what_transformers_decodes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 24, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 24, 2), generator=generator, dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)  # [experts, in, out]
    (reader,) = formats({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}})
    for expert in range(3):
        file = tmp_path / f"{expert}.safetensors"
        save_file({"weight_blocks": blocks[expert].clone(), "weight_scales": scales[expert].clone()}, file)
        parts = read_header(file)
        weight = reader.decode(parts)
        assert (reader.shape(parts), reader.kind(parts)) == ((24, 64), weight.kind)
        assert torch.equal(weight.dequantize(), theirs[expert].T)
        again = MXFP4Blocks.encode("m", weight, weight.kind)
        assert torch.equal(again["m.weight_blocks"], blocks[expert])
        assert torch.equal(again["m.weight_scales"], scales[expert])
        again = StoredMXFP4.encode("m", weight, weight.kind)  # as compressed-tensors has it
        assert torch.equal(again["m.weight_packed"], blocks[expert].reshape(24, 32))
        assert torch.equal(again["m.weight_scale"], scales[expert])


DAMAGED: dict[str, tuple[str, dict[str, torch.Tensor | None], str]] = {
    "no scale": ("nvfp4", {"weight_scale": None}, "has no weight_scale beside it"),
    "no global scale": ("nvfp4", {"weight_global_scale": None}, "weight_global_scale must be one F32, and is no such"),
    "two global scales": ("nvfp4", {"weight_global_scale": torch.ones(2)}, "must be one F32, and is F32 [2]"),
    "other groups": ("nvfp4", {"weight_scale": torch.ones(64, 3).to(torch.float8_e4m3fn)}, "groups of 16"),
    "other codes": ("mxfp4", {"weight_packed": torch.ones(64, 48).to(torch.int8)}, "is I8, its scales U8"),
    "other scales": ("mxfp4", {"weight_scale": torch.ones(64, 3)}, "its scales F32; must be U8 and U8 or F8_E8M0"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, name: str) -> None:
    scales, changes, said = DAMAGED[name]
    weights = packed_weights(DENSE, scales) | {f"{MODULE}.{part}": tensor for part, tensor in changes.items()}
    present = {name: tensor for name, tensor in weights.items() if tensor is not None}
    write_checkpoint(tmp_path, DENSE | {"quantization_config": compressed_tensors(scales)}, present)
    with pytest.raises(InputError) as caught:
        Checkpoint.open(tmp_path)
    assert said in str(caught.value) and MODULE in str(caught.value)


def test_scales_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    weights = packed_weights(DENSE, "mxfp4") | {f"{MODULE}.weight_scale": torch.full((64, 3), 255, dtype=torch.uint8)}
    write_checkpoint(tmp_path / "mx", DENSE | {"quantization_config": compressed_tensors("mxfp4")}, weights)
    with pytest.raises(InputError, match="holds NaN or infinity"):
        Checkpoint.open(tmp_path / "mx").quantized(MODULE)
    weights = packed_weights(DENSE, "nvfp4") | {f"{MODULE}.weight_global_scale": torch.zeros(1)}
    write_checkpoint(tmp_path / "nv", DENSE | {"quantization_config": compressed_tensors("nvfp4")}, weights)
    with pytest.raises(InputError, match=r"weight_global_scale is 0\.0, not positive"):
        Checkpoint.open(tmp_path / "nv").quantized(MODULE)


def test_rows_of_two_levels_join_only_below_one_scale(tmp_path: Path) -> None:
    weights = packed_weights(DENSE, "nvfp4")
    write_checkpoint(tmp_path, DENSE | {"quantization_config": compressed_tensors("nvfp4")}, weights)
    checkpoint = Checkpoint.open(tmp_path)
    found = [checkpoint.quantized(f"model.layers.0.mlp.{name}_proj") for name in ("gate", "up")]
    weights_there = [weight for weight in found if isinstance(weight, QuantizedWeight)]
    both = joined("m", [weights_there[0]] * 2)
    assert both.two_level is not None and both.two_level.codes.shape == both.scales.shape == (192, 4)
    with pytest.raises(InputError, match="no scales that fit one matrix"):
        joined("m", weights_there)


@pytest.mark.parametrize("scales", ["nvfp4", "mxfp4"])
def test_experts_load_in_transformers_or_stop_with_a_warning_of_ours(tmp_path: Path, scales: str) -> None:
    """It would leave out NVFP4's scale of the whole matrix, and say nothing; so what we write stops it."""
    config = DEEPSEEK | {"v_head_dim": 32, "num_nextn_predict_layers": 0}
    source = config | {"quantization_config": compressed_tensors(scales)}
    write_checkpoint(tmp_path / "source", source, packed_weights(config, scales))
    checkpoint = Checkpoint.open(tmp_path / "source")
    kinds = _kinds_of_experts(checkpoint)
    assert {kind.code_type for kind in kinds} == {"float4_e2m1fn"}
    obstacle = layout("compressed-tensors").obstacle({"experts": kinds}, False)
    kept = quantized_copy(checkpoint, {}, tmp_path)
    dense = CompressedTensorsConfig(dequantize=True)
    if scales == "nvfp4":
        assert "drops a scale" in obstacle
        with pytest.raises((RuntimeError, AttributeError)):
            AutoModelForCausalLM.from_pretrained(kept.path, dtype=torch.float32, quantization_config=dense)
        return
    assert not obstacle
    theirs = AutoModelForCausalLM.from_pretrained(kept.path, dtype=torch.float32, quantization_config=dense)
    name = "model.layers.1.mlp.experts"
    gates = torch.stack([kept.tensor(f"{name}.{expert}.gate_proj.weight") for expert in range(8)])
    assert torch.equal(theirs.state_dict()[f"{name}.gate_up_proj"][:, : gates.shape[1]], gates)
