"""The multi-token prediction layers, against transformers' MtpModel and against what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.architectures import EMBEDDED, TOLERANCE, error
from support.random_checkpoint import DEEPSEEK_V3, random_checkpoint
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM


def witness_logits(path: Path, ids: torch.Tensor, depth: int) -> torch.Tensor:
    """Logits of MTP layer `depth` for every position, computed by transformers; batch of one."""
    main = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    mtp = MtpModel.from_pretrained(main)
    cache = MtpCache(config=mtp.config)
    with torch.no_grad():
        hidden = main.model(ids).last_hidden_state
        for layer in range(depth + 1):
            # Every depth looks one token further and so covers one position less.
            count = ids.shape[1] - layer - 1
            positions = torch.arange(layer + 1, ids.shape[1])[None]
            hidden = mtp.forward_layer(layer, hidden[:, :count], positions, cache, input_ids=ids[:, layer + 1 :])
        return main.lm_head(hidden)


def our_hidden(model: CausalLM, ids: torch.Tensor, depth: int) -> torch.Tensor:
    hidden = model.hidden(ids)
    for layer in range(depth + 1):
        hidden = model.mtp(ids[:, layer + 1 :], hidden[:, : ids.shape[1] - layer - 1], depth=layer)
    return hidden


@pytest.mark.parametrize("depth", [0, 1])
def test_logits_equal_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    path = random_checkpoint(tmp_path, DEEPSEEK_V3, num_nextn_predict_layers=2)
    # transformers finds MTP tensors by the depth of the released model, 61.
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.[34]\..*"])
    ids = torch.randint(0, 96, (1, 50), generator=torch.Generator().manual_seed(1))
    model = CausalLM.load(Checkpoint.open(path))
    expected = witness_logits(path, ids, depth)
    assert error(expected, model.logits(our_hidden(model, ids, depth))) < TOLERANCE
    model.layers[3].self_attn.form = model.layers[4].self_attn.form = "absorbed"
    assert error(expected, model.logits(our_hidden(model, ids, depth))) < TOLERANCE


def test_step_by_step_equals_at_once(tmp_path: Path) -> None:
    model = CausalLM.load(Checkpoint.open(random_checkpoint(tmp_path, DEEPSEEK_V3)))
    ids = torch.arange(30)[None]
    hidden, cache = model.hidden(ids), model.new_cache(1, 30)[-1]
    at_once = our_hidden(model, ids, 0)
    steps = [model.mtp(ids[:, i + 1 : i + 2], hidden[:, i : i + 1], cache) for i in range(29)]
    assert error(at_once, torch.cat(steps, dim=1)) < TOLERANCE


def test_embedded_checkpoint_drafts_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits as in transformers, and a trained layer that agrees with the main model far beyond chance."""
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.4\..*"])
    model = CausalLM.load(Checkpoint.open(EMBEDDED))
    ids = torch.zeros(1, 1, dtype=torch.int64)
    caches = model.new_cache(1, 64)
    for _ in range(48):  # the model's own greedy text
        logits = model.logits(model.hidden(ids[:, caches[0].length :], caches))
        ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    drafts = model.logits(our_hidden(model, ids, 0))
    assert error(witness_logits(EMBEDDED, ids, 0), drafts) < TOLERANCE
    agreement = (drafts[:, :-1].argmax(-1) == ids[:, 2:]).float().mean()
    assert agreement > 0.5
