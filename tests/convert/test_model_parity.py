"""Our torch blocks against transformers' own classes, on the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.architectures import CASES, EMBEDDED, TOLERANCE, error, stepwise, yarn
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_checkpoint
from transformers import AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(tmp_path: Path, name: str) -> None:
    path = random_checkpoint(tmp_path, CASES[name])
    ids = torch.randint(0, 96, (2, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
    model = CausalLM.load(Checkpoint.open(path))
    assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE
    short = ids[:, :24]
    assert error(expected[:, :24], model.logits(stepwise(model, short))) < TOLERANCE
    if name.startswith("deepseek"):
        for layer in model.layers:
            layer.self_attn.form = "absorbed"
        assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE
        assert error(expected[:, :24], model.logits(stepwise(model, short))) < TOLERANCE


@pytest.mark.parametrize("config", [DEEPSEEK_V3 | yarn(mscale=1.0, mscale_all_dim=1.0), LLAMA, QWEN2])
def test_reads_what_transformers_writes(tmp_path: Path, config: dict[str, Any]) -> None:
    """The transformers 5 dialect of config.json: `rope_parameters`, `dtype`."""
    path = random_checkpoint(tmp_path / "theirs", config | {"num_nextn_predict_layers": 0})
    witness = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    witness.save_pretrained(tmp_path / "saved")
    ids = torch.arange(60)[None]
    with torch.no_grad():
        expected = witness(ids).logits
    model = CausalLM.load(Checkpoint.open(tmp_path / "saved"))
    assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE


def test_embedded_checkpoint_equals_transformers() -> None:
    ids = torch.randint(0, 4096, (2, 160), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)(ids).logits
    model = CausalLM.load(Checkpoint.open(EMBEDDED))
    assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE
    for layer in model.layers:
        layer.self_attn.form = "absorbed"
    assert error(expected[:, :40], model.logits(stepwise(model, ids[:, :40]))) < TOLERANCE


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, LLAMA))
    ids = torch.arange(60)[None]
    exact, rounded = CausalLM.load(checkpoint), CausalLM.load(checkpoint, torch.bfloat16)
    assert rounded.hidden(ids).dtype == torch.bfloat16
    assert error(exact.logits(exact.hidden(ids)), rounded.logits(rounded.hidden(ids))) < 0.05


def test_rolling_the_cache_back_forgets(tmp_path: Path) -> None:
    model = CausalLM.load(Checkpoint.open(random_checkpoint(tmp_path, DEEPSEEK_V3)))
    ids = torch.arange(40)[None]
    caches = model.new_cache(1, 40)
    model.hidden(ids[:, :30], caches)
    for cache in caches:
        cache.length = 20
    again = model.hidden(ids[:, 20:], caches)
    assert error(model.hidden(ids)[:, 20:], again) < TOLERANCE
