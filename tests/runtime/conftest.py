"""More artifacts for the runtime: the embedded checkpoint with int8 activations, and random models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.gpu_stand_in import HostMemory, gpu_stand_in
from support.nvlm import nvlm
from support.random_checkpoint import LLAMA, random_checkpoint
from support.runnable_artifact import lower, make_artifact

from llmc.quant.assign import Rule


@pytest.fixture(scope="session")
def trained_level_4(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lower(shutil.copytree(trained, tmp_path_factory.mktemp("level 4") / "artifact"), 4)


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random NVLM-D, which takes images."""
    folder = tmp_path_factory.mktemp("nvlm")
    nvlm(folder / "source")
    text = torch.randint(2, 250, (3, 40), generator=torch.Generator().manual_seed(0))
    return make_artifact(folder / "source", [Rule("dense_mlp", "int8-channel", "rtn")], text, folder)


@pytest.fixture(scope="session")
def dense_source(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokens are bytes, without MTP."""
    config = LLAMA | {"vocab_size": 260, "intermediate_size": 128, "max_position_embeddings": 600, "eos_token_id": 1}
    source = random_checkpoint(tmp_path_factory.mktemp("llama"), config)
    return Path(shutil.copy(small_model / "tokenizer.json", source)).parent


@pytest.fixture(scope="session")
def dense(dense_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = torch.randint(2, 258, (3, 40), generator=torch.Generator().manual_seed(0))
    return make_artifact(dense_source, [Rule("dense_mlp", "int4-g32", "rtn")], text, tmp_path_factory.mktemp("dense"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HostMemory:
    return gpu_stand_in(monkeypatch, tmp_path)
