"""A file, or a folder of another kind, in place of a model: every command says what it is and what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

SHAPES = {
    "model-Q4_K_M.gguf": "damaged or cut short",
    "adapter_model.safetensors": "is a LoRA adapter",
    "adapter_config.json": "is a LoRA adapter",
    "model.safetensors": "is one file of a checkpoint; give the folder",
}


@pytest.mark.parametrize("command", [("plan",), ("build",), ("inspect",), ("recipe", "new")], ids="-".join)
@pytest.mark.parametrize("name", SHAPES)
def test_files(llmc, tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF\0\0\0\3")
    refused = llmc(*command, tmp_path / name)
    assert refused.exit_code == 2
    assert f"{name}: {SHAPES[name]}" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("files", [["adapter_config.json", "adapter_model.safetensors"], ["model-Q4_K_M.gguf"]])
def test_folders(llmc, tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "model").mkdir()
    for file in files:
        (tmp_path / "model" / file).write_bytes(b"{}")
    refused = llmc("plan", tmp_path / "model")
    assert refused.exit_code == 2 and ("LoRA" in refused.stderr or "GGUF" in refused.stderr)
