"""NVLM-D: what config.json says of its tower, and its language model against transformers' Qwen2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.model_lines import published_config
from support.nvlm import CONFIG, TILE, nvlm

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.model import CausalLM
from llmc.convert.targets import target
from llmc.errors import InputError


def test_text_is_qwen2(tmp_path: Path) -> None:
    reference = nvlm(tmp_path / "source")
    checkpoint = Checkpoint.open(tmp_path / "source")
    ids = torch.randint(0, 250, (1, 40), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(checkpoint)
    found = model.logits(model.hidden(ids))[0].log_softmax(-1)
    assert (found - reference.logits(ids[0].tolist()).log_softmax(-1)).abs().max() < 1e-4
    assert checkpoint.role("vision_model.encoder.layers.0.ls1") == checkpoint.role("mlp1.1.weight") == "vision"
    assert checkpoint.vision_heads == 4
    used = {tensor.name for tensor in checkpoint.used()}
    assert {"mlp1.1.weight", "vision_model.encoder.layers.1.attn.qkv.weight"} <= used


def test_published_config() -> None:
    """256 tokens a tile of 448 pixels, as the published code counts them."""
    config = published_config("nvidia--NVLM-D-72B")
    family = family_of(config)
    vision = family.vision(config)
    assert vision is not None
    assert (vision.images.tile_size, vision.images.tile_tokens) == (448, 256)
    assert (vision.hidden_size, vision.num_heads, vision.head_dim, vision.text_size) == (3200, 25, 128, 8192)
    # 79.38 billion parameters are published: those of 32 heads, of which 7 are padding.
    shapes = [*vision.shapes(32).values(), *weight_shapes(family.spec(config)).values()]
    assert sum(map(math.prod, shapes)) / 1e9 == pytest.approx(79.38, abs=0.01)
    assert "auto_map" not in family.native_config(config)
    assert any("transformers has no class" in note for note in family.notes(config))


@pytest.mark.parametrize(
    ("outer", "tower", "said"),
    [
        ({"force_image_size": 50}, {}, "`force_image_size` 50 is no multiple of 2 patches of 14 pixels"),
        ({"select_layer": 3}, {}, "`select_layer` must be an integer from -2 to 2, not 3"),
        ({"downsample_ratio": 0.4}, {}, "`downsample_ratio` must be one divided by a whole number"),
        ({"ps_version": "v3"}, {}, "`ps_version` must be 'v1' or 'v2'"),
        ({}, {"hidden_act": "relu"}, "`vision_config.hidden_act` is 'relu', but only 'gelu' is supported"),
        ({}, {"num_attention_heads": 5}, "is no multiple of its `num_attention_heads` 5"),
        ({}, {"norm_type": "none"}, "`vision_config.norm_type` must be"),
    ],
)
def test_refused(outer: dict[str, Any], tower: dict[str, Any], said: str) -> None:
    config = CONFIG | outer | {"vision_config": CONFIG["vision_config"] | tower}
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        family_of(config).vision(config)


@pytest.mark.parametrize(("select", "layers"), [(-1, 2), (-2, 1), (1, 1), (2, 2)])
def test_layer_of_the_features(select: int, layers: int) -> None:
    """As `hidden_states[select]` of transformers' encoders, whose first one is the embedding."""
    config = CONFIG | {"select_layer": select}
    vision = family_of(config).vision(config)
    assert vision is not None and vision.num_layers == layers


def test_tower_that_is_not_whole(tmp_path: Path) -> None:
    nvlm(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    tower = CONFIG["vision_config"]
    path.write_text(json.dumps(CONFIG | {"vision_config": tower | {"num_hidden_layers": 3}}))
    with pytest.raises(InputError, match=r"encoder.layers.2.\S+ of the vision tower is missing \(10 in all\)"):
        Checkpoint.open(tmp_path / "source")
    path.write_text(json.dumps(CONFIG | {"force_image_size": 2 * TILE}))
    with pytest.raises(InputError, match=r"position_embedding has shape \[1, 17, 48\], but config.json asks for"):
        Checkpoint.open(tmp_path / "source")


@pytest.mark.slow
def test_engine_takes_features(tmp_path: Path) -> None:
    """Any number of them, none included, in every step; the tower is not part of it."""
    nvlm(tmp_path / "source")
    checkpoint, rtx = Checkpoint.open(tmp_path / "source"), target("tensorrt-rtx")
    result = rtx.build(checkpoint, rtx.Options(sm=[89], context=64), checkpoint.path, lambda *_: None)
    description = json.loads((checkpoint.path / "engines" / "rtx-sm89.json").read_text())
    inputs = {each["name"]: each["shape"] for each in description["inputs"]}
    assert (inputs["image_features"], inputs["image_positions"]) == ([-1, 64], [-1, 2])
    shapes = [profile["shapes"]["image_features"] for profile in description["profiles"]]
    assert [[count for count, _ in each] for each in shapes] == [[0, 0, 2], [0, 0, 128]]
    assert not any("vision" in file for file in result.files.values())
    assert any("vision tower of target onnxruntime" in note for note in result.notes)


@pytest.mark.parametrize("name", ["Qwen--Qwen3-VL-8B-Instruct", "Qwen--Qwen3-VL-30B-A3B-Instruct"])
def test_other_towers_say_what_is_missing(name: str) -> None:
    config = published_config(name)
    family = family_of(config)
    assert family.vision(config) is None
    assert any("no images yet" in note and "M-RoPE" in note for note in family.notes(config))
