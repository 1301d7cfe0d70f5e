"""What is given in place of a model is told by `plan` and `build` at once, before weights are downloaded or hashed."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
import pytest
from support.random_checkpoint import LLAMA, random_checkpoint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.gguf", "does not begin as a GGUF file"),
        ("model.safetensors", "one file of a checkpoint; give the folder with all of them"),
        ("config.json", "one file of a checkpoint"),
        ("pytorch_model.bin", "pickle"),
        ("model.onnx", "is compiled"),
        ("model.tar.gz", "unpack it"),
    ],
)
def test_files(llmc, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\xff" * 100)
    for command in ("plan", "build"):
        made = llmc(command, tmp_path / name)
        assert made.exit_code == 2
        assert said in made.stderr
        assert str(tmp_path) in made.stderr


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no tokenizer.json, and a model without it .* download it"),
        (["tokenizer.model"], r"tokenizer\.model: neither a model of SentencePiece nor ranks of tiktoken; download it"),
        (["qwen.tiktoken", "tokenizer_config.json"], r"qwen\.tiktoken: not a file of tiktoken, .*; download it again"),
        (["vocab.json", "merges.txt"], r"only vocab\.json .*; let transformers write one: AutoTokenizer"),
        (["tekken.json"], r"tekken\.json: no vocabulary of tekken .*; download it again"),
        (
            ["vocab.json", "tokenization_my.py"],
            r"only vocab\.json and code that reads it \(tokenization_my\.py\), which llmc does not run; look for",
        ),
        (["tokenization_my.py"], r"only code \(tokenization_my\.py\)"),
    ],
)
def test_without_a_tokenizer(llmc, tmp_path: Path, files: list[str], said: str) -> None:
    path = random_checkpoint(tmp_path / "model", LLAMA)
    for file in files:
        (path / file).write_text("{}")
    for command in ("plan", "build"):
        made = llmc(command, path)
        assert made.exit_code == 2
        assert re.search(said, made.stderr)
        assert "sha256" not in made.stderr


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "model org/x: is a LoRA adapter"),
        (["x-Q8_0.gguf"], r"model org/x: x-Q8_0\.gguf is GGUF"),
        (["config.json", "README.md", "unet/model.safetensors"], "model org/x: holds no safetensors"),
        (
            ["config.json", "model.safetensors", "vocab.json"],
            r"org/x: there is no tokenizer.json, .*\(hf download org/x",
        ),
    ],
)
def test_a_hub_tells_names_before_anything_is_downloaded(
    llmc, monkeypatch: pytest.MonkeyPatch, files: list[str], said: str
) -> None:
    downloaded: list[object] = []
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: downloaded.append(1))
    for command in ("plan", "build"):
        made = llmc(command, "org/x")
        assert made.exit_code == 2
        assert re.search(said, made.stderr)
    assert not downloaded
