"""What a checkpoint carries twice is compared before one of the two is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantized_checkpoint import quantized_copy
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_weights, write_checkpoint
from transformers import AutoModelForCausalLM

from llmc.convert import copies
from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.safetensors_file import StoredTensor
from llmc.errors import InputError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True}
IDS = torch.arange(40)[None]


def carrying(path: Path, config: dict[str, Any], **more: torch.Tensor) -> Path:
    weights = random_weights(config)
    return write_checkpoint(path, config, weights | more)


def changed(weight: torch.Tensor) -> torch.Tensor:
    """Only its very last number is another."""
    other = weight.clone()
    other.view(-1)[-1] += 1
    return other


def distance(model: CausalLM, witness: Any) -> float:
    """Largest relative difference of logits."""
    with torch.no_grad():
        expected = witness(IDS).logits
    return ((expected - model.logits(model.hidden(IDS))).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("config", [LLAMA, QWEN2, DEEPSEEK_V3], ids=["llama", "qwen2", "deepseek_v3"])
def test_a_head_of_its_own_is_kept_whatever_the_flag_says(tmp_path: Path, config: dict[str, Any]) -> None:
    config = config | TIED
    other = torch.randn(96, 64, generator=torch.Generator().manual_seed(5)) / 8
    path = carrying(tmp_path / "model", config, **{HEAD: other})
    witness = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(witness.lm_head.weight, other)  # transformers keeps both
    checkpoint = Checkpoint.open(path)
    assert not checkpoint.spec.tie_word_embeddings
    assert distance(CausalLM.load(checkpoint), witness) < 1e-4


def test_what_is_built_from_it_says_so(tmp_path: Path) -> None:
    """vLLM believes the flag."""
    path = carrying(tmp_path / "model", LLAMA | TIED, **{HEAD: changed(random_weights(LLAMA | TIED)[EMBEDDING])})
    made = quantized_copy(Checkpoint.open(path), {"attention": "int4-g32"}, tmp_path)
    assert made.config["tie_word_embeddings"] is False
    assert torch.equal(made.tensor(HEAD), Checkpoint.open(path).tensor(HEAD))
    assert distance(CausalLM.load(made), AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_of_the_embedding_stays_tied(tmp_path: Path, dtype: torch.dtype) -> None:
    """In another type, too."""
    config = LLAMA | TIED
    weights = {name: weight.bfloat16() for name, weight in random_weights(config).items()}
    write_checkpoint(tmp_path, config, weights | {HEAD: weights[EMBEDDING].to(dtype)})
    assert Checkpoint.open(tmp_path).spec.tie_word_embeddings


@pytest.mark.parametrize("pieces", [7, 1 << 22])
def test_a_single_number_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(copies, "_PIECE", pieces)
    path = carrying(tmp_path, LLAMA | TIED, **{HEAD: changed(random_weights(LLAMA | TIED)[EMBEDDING])})
    assert not Checkpoint.open(path).spec.tie_word_embeddings


def test_quantized_heads_are_compared_by_what_they_mean(tmp_path: Path) -> None:
    """FP8 codes beside a plain embedding: the same numbers, and others."""
    quantization = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    codes = random_weights(LLAMA | TIED)[EMBEDDING].to(torch.float8_e4m3fn)
    for factor, tied in ((1.0, True), (2.0, False)):
        parts = {HEAD: codes, "lm_head.weight_scale_inv": torch.full((1, 1), factor), EMBEDDING: codes.float()}
        path = carrying(tmp_path / str(factor), LLAMA | TIED | quantization, **parts)
        checkpoint = Checkpoint.open(path)
        assert checkpoint.spec.tie_word_embeddings is tied
        made = quantized_copy(checkpoint, {"attention": "int4-g32"}, tmp_path / str(factor))
        assert torch.equal(made.tensor(HEAD), factor * codes.float())


def test_a_head_of_another_shape_is_refused_from_headers(tmp_path: Path) -> None:
    path = carrying(tmp_path, LLAMA | TIED, **{HEAD: torch.zeros(128, 64)})
    with pytest.raises(InputError, match=r"lm_head.weight has shape \[128, 64\], but it should be a copy"):
        Checkpoint.open(path, headers_only=True)


COPIES = ["model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("different", [None, *COPIES])
def test_mtp_copies(tmp_path: Path, different: str | None, tied: bool) -> None:
    config = DEEPSEEK_V3 | {"tie_word_embeddings": tied}
    weights = random_weights(config)
    mine = dict(zip(COPIES, (weights[EMBEDDING], weights[EMBEDDING if tied else HEAD]), strict=True))
    if different is not None:
        mine[different] = changed(mine[different])
    write_checkpoint(tmp_path, config, weights | mine)
    Checkpoint.open(tmp_path, headers_only=True)
    if different is None:
        Checkpoint.open(tmp_path)
        return
    with pytest.raises(InputError, match=f"{different} differs from .*not supported. To draft with the main model's"):
        Checkpoint.open(tmp_path)
    # As the message says.
    names = [name for name in (*weights, *mine) if name != different]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    Checkpoint.open(tmp_path)


def test_plans_read_no_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model on the hub they have no weights."""
    path = carrying(tmp_path, LLAMA | TIED, **{HEAD: random_weights(LLAMA | TIED)[EMBEDDING]})
    monkeypatch.setattr(StoredTensor, "read", lambda self: pytest.fail(f"{self.name} is read"))
    assert Checkpoint.open(path, headers_only=True).spec.tie_word_embeddings
