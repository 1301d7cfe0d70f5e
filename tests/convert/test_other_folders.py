"""What people give in place of a checkpoint, and what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.random_checkpoint import LLAMA, random_checkpoint

from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.convert.other_folders import require_tokenizer
from llmc.errors import InputError

FOLDERS = {
    "LoRA": (
        ["adapter_config.json", "adapter_model.safetensors"],
        "LoRA adapter .* merge it into its base model first",
    ),
    "LoRA with a config": (["config.json", "adapter_config.json", "adapter_model.bin"], "LoRA adapter"),
    "GGUF": (["model-Q4_K_M.gguf", "README.md"], r"model-Q4_K_M\.gguf: does not begin as a GGUF file"),
    "diffusers": (["model_index.json", "model.safetensors"], "diffusers pipeline"),
    "Mistral": (["params.json", "consolidated.safetensors", "tokenizer.model.v3"], "publisher's own format"),
    "Mistral with a config": (["config.json", "consolidated.safetensors"], r"format \(consolidated\.safetensors\)"),
    "pickles": (["config.json", "pytorch_model.bin.index.json"], "pickle files can run code .*save_pretrained"),
    "ONNX": (["config.json", "model.onnx"], r"model\.onnx is compiled; llmc starts from the original"),
    "TensorFlow": (["config.json", "tf_model.h5"], r"tf_model\.h5 and no safetensors"),
    "a hub's cache": (["blobs", "refs", "snapshots"], "hub's cache; give the folder in snapshots/"),
    "no config": (["model.safetensors"], r"config\.json: cannot be read .* every checkpoint needs it"),
    "nothing": ([], r"config\.json: cannot be read"),
    "no weights": (["config.json", "tokenizer.json"], f"neither model.safetensors nor {INDEX} is there; download"),
    "adapter alone": (["config.json", "adapter_model.safetensors"], "neither model.safetensors nor"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path: Path, name: str) -> None:
    files, said = FOLDERS[name]
    for file in files:
        (tmp_path / file).write_text(json.dumps(LLAMA))
    with pytest.raises(InputError, match=said) as caught:
        Checkpoint.open(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "'LlamaForSequenceClassification' .* another task"),
        ({"architectures": ["LlamaModel"]}, "'LlamaModel' .* another task"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "an encoder with a decoder"),
    ],
)
def test_configs_of_other_tasks(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = random_checkpoint(tmp_path, LLAMA)
    (path / "config.json").write_text(json.dumps(LLAMA | changes))
    with pytest.raises(InputError, match=rf"config\.json: .*{said}; llmc builds models that continue text"):
        Checkpoint.open(path)


def test_the_folder_that_models_lie_in(tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "llama", LLAMA)
    with pytest.raises(InputError, match=r"no config\.json, but in llama; give that: .*/llama"):
        Checkpoint.open(tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards and no index."""
    path = random_checkpoint(tmp_path / "model", LLAMA)
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    for number in range(3):
        save_file(
            {name: weights[name] for name in names[number::3]}, path / f"model-{number + 1:05}-of-00003.safetensors"
        )
    return path


def test_all_shards_without_an_index_are_read(shards: Path) -> None:
    checkpoint = Checkpoint.open(shards)
    assert len(checkpoint.shards) == 3
    assert checkpoint.names() and checkpoint.tensor("lm_head.weight").shape == (96, 64)


def test_missing_shards_are_named(shards: Path) -> None:
    for number in (2, 3):
        (shards / f"model-{number:05}-of-00003.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"2 of 3 shards are missing, the first of them model-00002-of-00003.safetensors"
    ):
        Checkpoint.open(shards)
    weight_map = {"lm_head.weight": "model-00003-of-00003.safetensors", "a": "model-00001-of-00003.safetensors"}
    (shards / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="1 of 2 files of weights are missing"):
        Checkpoint.open(shards)


def test_files_of_which_nothing_says_what_they_are(shards: Path) -> None:
    (shards / "mtp.safetensors").write_bytes((shards / "model-00001-of-00003.safetensors").read_bytes())
    with pytest.raises(InputError, match=f"which of the 4 files .* is said by {INDEX}, which is missing"):
        Checkpoint.open(shards)


def test_a_tensor_in_two_shards(shards: Path) -> None:
    (shards / "model-00002-of-00003.safetensors").write_bytes(
        (shards / "model-00001-of-00003.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match=r"is in model-00001-of-00003.safetensors, too; .*index"):
        Checkpoint.open(shards)


def test_the_only_file_of_weights_is_the_model(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, LLAMA)
    (path / "model.safetensors").rename(path / "gptq_model-4bit-128g.safetensors")
    (path / "consolidated.safetensors").write_bytes(b"another format")
    assert [shard.name for shard in Checkpoint.open(path).shards] == ["gptq_model-4bit-128g.safetensors"]


def test_of_a_hub_model_it_is_said_what_to_download() -> None:
    with pytest.raises(InputError, match=r"hf download org/name --local-dir DIR\), then .*from_pretrained\('DIR'\)"):
        require_tokenizer("org/name", {"vocab.json"}, on_hub=True)
