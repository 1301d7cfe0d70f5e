"""ModelOpt's layout as llmc writes it: against published configurations, and against compressed-tensors' converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
from safetensors.torch import load_file
from support.float4_checkpoint import MODELOPT, modelopt_weights
from support.quantized_checkpoint import DEEPSEEK, quantized_checkpoint, quantized_copy
from support.random_checkpoint import LLAMA, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import layout
from llmc.convert.formats.float4 import NVFP4
from llmc.quant.layerwise import QuantizeOptions
from llmc.quant.schemes import scheme

DENSE = LLAMA | {"intermediate_size": 96}
CONFIGS = Path(__file__).parents[1] / "data" / "configs"
WRITTEN = QuantizeOptions(layout="modelopt")


def stored(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor for file in checkpoint.shards for name, tensor in load_file(file).items()}


def published(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / f"nvidia--{name}.json").read_text())["quantization_config"]
    return found


def described(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json and hf_quant_config.json say."""
    beside = json.loads((checkpoint.path / "hf_quant_config.json").read_text())
    assert beside["producer"]["name"] == "modelopt"
    return json.loads((checkpoint.path / "config.json").read_text())["quantization_config"], beside["quantization"]


def test_what_is_published_is_kept_bit_for_bit(tmp_path: Path) -> None:
    """NVFP4, FP8 and the scales of inputs, which are numbers that no power of two divides."""
    weights, generator = modelopt_weights(DENSE), torch.Generator().manual_seed(2)
    for name in weights:
        if name.endswith(("input_scale", "weight_scale_2")):
            weights[name] = 0.001 + torch.rand((), generator=generator)
    config = DENSE | {"quantization_config": MODELOPT | {"quant_method": "modelopt"}}
    source = Checkpoint.open(write_checkpoint(tmp_path / "source", config, weights))
    kept = quantized_copy(source, {}, tmp_path, WRITTEN)
    found = stored(kept)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        same = found[name].shape == tensor.shape and found[name].dtype == tensor.dtype
        assert same and found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name


def test_one_algorithm_is_said_as_in_published_checkpoints(tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path, DENSE, {"dense_mlp": "nvfp4-static"}, WRITTEN)
    config, beside = described(made)
    theirs = published("GLM-5.1-NVFP4")
    assert config.keys() | {"kv_cache_scheme"} == theirs.keys()
    same = ("config_groups", "quant_algo", "quant_method")
    assert all(config[name] == theirs[name] for name in same)
    assert config["ignore"] == ["lm_head", "model.layers.0.self_attn*", "model.layers.1.self_attn*"]
    assert all(pattern in theirs["ignore"] for pattern in ("lm_head", "model.layers.10.self_attn*"))
    assert beside == {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": config["ignore"],
    }


def test_several_algorithms_are_said_layer_by_layer(tmp_path: Path) -> None:
    schemes = {"dense_mlp": "nvfp4-static", "attention": "fp8-tensor-static"}
    made = quantized_checkpoint(tmp_path, DENSE, schemes, QuantizeOptions(layout="modelopt", fp8_cache=True))
    config, beside = described(made)
    theirs = published("Qwen3.6-35B-A3B-NVFP4")
    assert config.keys() == theirs.keys() | {"kv_cache_scheme"} and config["quant_algo"] == theirs["quant_algo"]
    assert config["kv_cache_scheme"] == published("GLM-5.1-NVFP4")["kv_cache_scheme"] and made.spec.fp8_cache
    names = {name for name in stored(made) if name.endswith(("k_scale", "v_scale"))}
    assert names == {f"model.layers.{n}.self_attn.{kind}_proj.{kind}_scale" for n in (0, 1) for kind in "kv"}
    assert beside["quantized_layers"] == config["quantized_layers"] and beside["kv_cache_quant_algo"] == "FP8"
    ours, wanted = (
        {json.dumps({**group, "targets": []}, sort_keys=True) for group in each["config_groups"].values()}
        for each in (config, theirs)
    )
    assert ours == wanted
    told = {module: entry["quant_algo"] for module, entry in config["quantized_layers"].items()}
    assert told["model.layers.1.mlp.up_proj"] == "NVFP4" and told["model.layers.0.self_attn.o_proj"] == "FP8"
    assert {target for group in config["config_groups"].values() for target in group["targets"]} == told.keys()


def test_routers_and_what_no_rule_matches_are_excluded() -> None:
    modules = [f"model.layers.1.mlp.experts.{expert}.{name}_proj" for expert in (0, 1) for name in ("gate", "up")]
    modules += ["model.layers.1.mlp.shared_experts.up_proj", "model.layers.1.self_attn.q_proj"]
    modules += ["model.layers.1.self_attn.k_proj", "model.layers.2.self_attn.k_proj", "model.layers.2.eh_proj"]
    named = dict.fromkeys([*modules[:4], "model.layers.1.self_attn.q_proj"], scheme("nvfp4"))
    config = layout("modelopt").config(named, modules, False)
    assert config["quant_algo"] == "W4A16_NVFP4" and "input_activations" not in config["config_groups"]["group_0"]
    assert config["ignore"] == [
        "*.gate",
        "*.router",
        "*.shared_expert_gate",
        "lm_head",
        "model.layers.1.mlp.shared_experts*",
        "model.layers.1.self_attn.k_proj",
        "model.layers.2*",
        "model.layers.2.self_attn*",
    ]


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-static"])
def test_the_package_converts_what_is_written_to_what_is_written_in_its_own_layout(tmp_path: Path, name: str) -> None:
    config = DEEPSEEK | {"num_nextn_predict_layers": 0}
    theirs, ours = (
        quantized_checkpoint(tmp_path / each, config, {"experts": name}, QuantizeOptions(layout=each))
        for each in ("modelopt", "compressed-tensors")
    )
    converted = ModelOptNvfp4Converter(targets=["re:.*experts.*_proj$"]).process(stored(theirs))
    wanted = stored(ours)
    assert converted.keys() == wanted.keys()
    for part in wanted:
        assert converted[part].reshape(-1).view(torch.uint8).equal(wanted[part].reshape(-1).view(torch.uint8)), part
    module = "model.layers.1.mlp.experts.0.up_proj"
    assert theirs.activations(module) == ours.activations(module)
    assert theirs.tensor(f"{module}.weight").equal(ours.tensor(f"{module}.weight"))
    assert NVFP4.takes(theirs.kind(f"{module}.weight"))


def test_hf_quant_config_alone_is_enough(tmp_path: Path) -> None:
    made = quantized_checkpoint(tmp_path, DENSE, {"dense_mlp": "nvfp4-static"}, WRITTEN)
    config = json.loads((made.path / "config.json").read_text())
    del config["quantization_config"]
    (made.path / "config.json").write_text(json.dumps(config))
    again = Checkpoint.open(made.path)
    assert again.activations("model.layers.1.mlp.up_proj") == made.activations("model.layers.1.mlp.up_proj")
    assert again.activations("model.layers.1.mlp.up_proj").per == "nvfp4"
