"""Opening and reading checkpoints: what a whole one gives, and how each kind of broken one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint, random_weights, write_checkpoint

from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.convert.model import load_layer
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError

EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A DeepSeek-V3 checkpoint in two shards with an index, bfloat16."""
    path = write_checkpoint(tmp_path / "model", DEEPSEEK_V3, {})
    (path / "model.safetensors").unlink()
    weights = {name: weight.bfloat16() for name, weight in random_weights(DEEPSEEK_V3).items()}
    names = list(weights)
    shards = {"model-00001-of-00002.safetensors": names[:40], SHARD: names[40:]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, path / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def refused(path: Path) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(InputError) as caught:
        Checkpoint.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_a_sharded_checkpoint_reads_back(sharded: Path) -> None:
    checkpoint = Checkpoint.open(str(sharded))
    weights = random_weights(DEEPSEEK_V3)
    assert sorted(checkpoint.names()) == sorted(weights)
    assert checkpoint.nbytes() == 2 * sum(weight.numel() for weight in weights.values())
    assert checkpoint.nbytes(EXPERT) == checkpoint.stored(EXPERT).nbytes == 2 * 48 * 64
    assert EXPERT in checkpoint
    assert "model.layers.9.mlp" not in checkpoint
    for name, weight in weights.items():
        assert checkpoint.shape(name) == weight.shape
        assert torch.equal(checkpoint.tensor(name), weight.bfloat16().float())
    assert checkpoint.tensor(EXPERT, torch.bfloat16).dtype == torch.bfloat16
    assert checkpoint.quantized(EXPERT.removesuffix(".weight")) is None
    stored = checkpoint.stored(EXPERT)
    raw = stored.file.read_bytes()[stored.offset : stored.offset + stored.nbytes]
    assert torch.equal(torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).reshape(48, 64), stored.read())


def test_files_are_all_that_make_the_model(sharded: Path) -> None:
    (sharded / "tokenizer.json").write_text("{}")
    (sharded / "notes.txt").write_text("mine")
    names = [file.name for file in Checkpoint.open(sharded).files()]
    assert names == ["config.json", "model-00001-of-00002.safetensors", SHARD, INDEX, "tokenizer.json"]


@pytest.mark.parametrize("content", ['{"eos_token_id": "1"}', "{"])
def test_a_broken_generation_config_is_named(tmp_path: Path, content: str) -> None:
    path = random_checkpoint(tmp_path, LLAMA)
    (path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=r"generation_config\.json: ") as told:
        Checkpoint.open(path)
    assert str(told.value).count("generation_config.json") == 1


def test_end_of_turn_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, LLAMA)
    assert Checkpoint.open(path).spec.eos_token_ids == (1, 2)
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 7, 9]}')
    assert Checkpoint.open(path).spec.eos_token_ids == (1, 7, 9)


def test_opening_reads_no_weights_and_a_layer_only_its_own(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self: (read.append(self.name), original(self))[1])
    checkpoint = Checkpoint.open(sharded)
    assert read == []
    layer = load_layer(checkpoint, 2, torch.bfloat16)
    assert len(read) == len(list(layer.parameters()))
    assert all(name.startswith("model.layers.2.") for name in read)
    assert layer.mlp.gate.weight.dtype == torch.float32
    assert layer.mlp.experts[3].up_proj.weight.dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in layer.parameters())


def test_copies_of_embedding_and_head_in_the_mtp_layer_are_welcome(sharded: Path) -> None:
    copies = [f"model.layers.3.{name}.weight" for name in ("embed_tokens", "shared_head.head")]
    originals = ("model.embed_tokens.weight", "lm_head.weight")
    weights = {name: weight.bfloat16() for name, weight in random_weights(DEEPSEEK_V3).items()}
    mine = {name: weights[original] for name, original in zip(copies, originals, strict=True)}
    edit_weights(sharded / SHARD, lambda stored: stored.update(mine))
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(copies, SHARD)))
    checkpoint = Checkpoint.open(sharded)
    assert [checkpoint.role(name) for name in copies] == ["mtp", "mtp"]
    assert set(copies) < set(checkpoint.names())


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")


def test_no_config(sharded: Path) -> None:
    (sharded / "config.json").unlink()
    assert "config.json: cannot be read" in refused(sharded)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_broken_json(sharded: Path, name: str) -> None:
    for content, message in (
        (b"{", "not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b"\xff", "not valid JSON"),
    ):
        (sharded / name).write_bytes(content)
        assert f"{name}: {message}" in refused(sharded)


def test_no_weights(sharded: Path) -> None:
    for file in (INDEX, "model-00001-of-00002.safetensors", SHARD):
        (sharded / file).unlink()
    assert "neither model.safetensors nor" in refused(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    path = random_checkpoint(tmp_path, LLAMA)
    (path / "model.safetensors").rename(path / name)
    message = refused(path)
    assert name in message
    assert "pickle" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "pytorch_model.bin", 7])
def test_an_index_points_only_into_its_folder(sharded: Path, place: Any) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({EXPERT: place}))
    message = refused(sharded)
    assert EXPERT in message
    assert repr(place) in message
    assert "only safetensors files in the same folder" in message


def test_missing_shard(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    assert f"{SHARD}: cannot be read (No such file or directory); download it again" in refused(sharded)


@pytest.mark.parametrize("keep", [0, 5, 200, 100_000, -1])
def test_truncated_shard(sharded: Path, keep: int) -> None:
    data = (sharded / SHARD).read_bytes()
    (sharded / SHARD).write_bytes(data[:keep])
    message = refused(sharded)
    assert SHARD in message
    assert "truncated" in message
    assert "download" in message


def test_a_tensor_the_index_promises_is_not_in_its_shard(sharded: Path) -> None:
    edit_weights(sharded / SHARD, lambda weights: weights.pop(EXPERT))
    assert f"{SHARD}: tensor {EXPERT} is missing" in refused(sharded)


def test_a_tensor_the_config_promises_is_nowhere(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(EXPERT))
    assert f"tensor {EXPERT} is missing (1 in all); download" in refused(sharded)


@pytest.mark.parametrize("field", ["num_nextn_predict_layers", "num_mtp_layers", None])
def test_lost_mtp_layer(sharded: Path, field: str | None) -> None:
    """What many tools leave behind: the config still promises the layer, by one name or another, or by saying nothing.
    Without a part of it there is no model.
    """

    def drop(part: str) -> None:
        def dropped(index: dict[str, Any]) -> None:
            index["weight_map"] = {name: file for name, file in index["weight_map"].items() if part not in name}

        edit_json(sharded / INDEX, dropped)

    def count(config: dict[str, Any]) -> None:
        number = config.pop("num_nextn_predict_layers")
        config.update({field: number} if field else {})

    edit_json(sharded / "config.json", count)
    assert Checkpoint.open(sharded).lost_mtp_layers == 0
    drop(".layers.3.enorm.")
    assert "tensor model.layers.3.enorm.weight is missing (1 in all); download the checkpoint again" in refused(sharded)
    drop(".layers.3.")
    checkpoint = Checkpoint.open(sharded)
    assert (checkpoint.spec.num_mtp_layers, checkpoint.lost_mtp_layers) == (0, 1)
    assert checkpoint.spec == checkpoint.family.spec(checkpoint.config)
    assert checkpoint.config["num_nextn_predict_layers"] == 0 and "num_mtp_layers" not in checkpoint.config
    assert checkpoint.notes()[0].startswith("config.json counts 1 layer for multi-token prediction, of which no")


def test_a_tensor_the_model_has_no_place_for(tmp_path: Path) -> None:
    weights = random_weights(LLAMA | {"attention_bias": True})
    message = refused(write_checkpoint(tmp_path, LLAMA, weights))
    assert "model.layers.0.self_attn.q_proj.bias has no place in a llama model" in message


def test_old_rotary_buffers_are_harmless(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    Checkpoint.open(write_checkpoint(tmp_path, LLAMA, random_weights(LLAMA) | buffer))


def test_an_expert_of_the_wrong_shape(sharded: Path) -> None:
    edit_weights(sharded / SHARD, lambda weights: weights.update({EXPERT: torch.zeros(40, 64)}))
    message = refused(sharded)
    assert f"tensor {EXPERT} has shape [40, 64], but config.json asks for [48, 64]" in message


@pytest.mark.parametrize(("dtype", "name"), [(torch.int64, "I64"), (torch.float64, "F64"), (torch.uint8, "U8")])
def test_wrong_dtype(sharded: Path, dtype: torch.dtype, name: str) -> None:
    edit_weights(sharded / SHARD, lambda weights: weights.update({EXPERT: torch.zeros(48, 64, dtype=dtype)}))
    message = refused(sharded)
    assert f"{SHARD}: {EXPERT} is {name}" in message
    assert "must be BF16, F16, F32" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_on_reading(sharded: Path, value: float) -> None:
    edit_weights(sharded / SHARD, lambda weights: weights[EXPERT].view(-1)[100].fill_(value))
    checkpoint = Checkpoint.open(sharded)
    with pytest.raises(InputError, match=f"tensor {EXPERT} holds NaN or infinity"):
        checkpoint.tensor(EXPERT)


@pytest.mark.parametrize("part", ["weight", "weight_scale_inv"])
def test_nan_in_quantized_parts_is_refused_on_reading(tmp_path: Path, part: str) -> None:
    weights = random_weights(LLAMA)
    module = "model.layers.0.mlp.down_proj"
    weights[f"{module}.weight"] = weights[f"{module}.weight"].to(torch.float8_e4m3fn)
    weights[f"{module}.weight_scale_inv"] = torch.ones(1, 1)
    weights[f"{module}.{part}"].view(torch.uint8 if part == "weight" else torch.float32)[0, 0] = (
        0xFF if part == "weight" else float("nan")
    )
    quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    write_checkpoint(tmp_path, LLAMA | {"quantization_config": quantization_config}, weights)
    with pytest.raises(InputError, match=f"{module}.weight holds NaN"):
        Checkpoint.open(tmp_path).tensor(f"{module}.weight")


def test_unknown_architecture(sharded: Path) -> None:
    edit_json(sharded / "config.json", lambda c: c.update(architectures=["FooForCausalLM"], model_type="foo"))
    message = refused(sharded)
    assert "config.json: unknown architecture 'FooForCausalLM'" in message
    assert "`architectures` and `model_type`" in message
    assert "the nearest family is 'deepseek_" in message
