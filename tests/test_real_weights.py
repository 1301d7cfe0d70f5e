"""Conversions of ci/bench: a GGUF file becomes the checkpoint that it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.random_checkpoint import LLAMA, random_checkpoint
from tokenizers import Tokenizer

BENCH = Path(__file__).parents[1] / "ci" / "bench"


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.syspath_prepend(BENCH / "decoders")
    import checkpoint_to_gguf
    import gguf_to_checkpoint

    return checkpoint_to_gguf, gguf_to_checkpoint


@pytest.fixture
def model(tmp_path: Path, small_model: Path) -> Path:
    """A Llama whose tokens are bytes, and two letters."""
    config = LLAMA | {"vocab_size": 259, "eos_token_id": 1, "num_nextn_predict_layers": 0}
    path = random_checkpoint(tmp_path / "model", config)
    described = json.loads((small_model / "tokenizer.json").read_text())
    described["model"]["vocab"]["ab"], described["model"]["merges"] = 258, [["a", "b"]]
    (path / "tokenizer.json").write_text(json.dumps(described))
    return path


def test_there_and_back(conversion: Any, model: Path, tmp_path: Path) -> None:
    """llama.cpp's order of rows, made by one script, is undone by the other; float16 is all that is lost."""
    there, back = conversion
    there.convert(model, tmp_path / "model.gguf", mtp=False)
    back.convert(tmp_path / "model.gguf", tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (model, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight.float(), rtol=1e-3, atol=1e-4, msg=name)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    same = "hidden_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size"
    assert {name: config[name] for name in same} == {name: LLAMA.get(name) for name in same} | {"vocab_size": 259}
    assert not config["tie_word_embeddings"]


def test_there_and_back_with_experts_and_a_latent(conversion: Any, small_model: Path, tmp_path: Path) -> None:
    """What frontier.py measures of llama.cpp: heads of kv_b_proj and stacked experts are where they were."""
    import gguf_weights

    conversion[0].convert(small_model, tmp_path / "model.gguf", mtp=False)
    gguf_weights.decode(small_model, tmp_path / "model.gguf", tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (small_model, tmp_path / "again"))
    assert after.keys() == {name for name in before if not name.startswith("model.layers.2.")}
    for name, weight in after.items():
        torch.testing.assert_close(weight, before[name].float(), rtol=1e-3, atol=1e-4, msg=name)


def test_importance_is_of_each_experts_own_tokens(conversion: Any, small_model: Path) -> None:
    """Mean squares of what the matrices read, by llama.cpp's names, against those of a whole pass."""
    from importance import importance

    from llmc.convert.checkpoint import Checkpoint
    from llmc.convert.model import CausalLM

    ids = np.arange(40).reshape(2, 20)
    found = importance(small_model, ids)
    model = CausalLM.load(Checkpoint.open(small_model))
    normed = model.layers[0].input_layernorm(model.embed(torch.from_numpy(ids))).flatten(0, 1)
    np.testing.assert_allclose(found["blk.0.attn_q_a.weight"], normed.square().mean(0), rtol=1e-5)
    hidden = model.hidden(torch.from_numpy(ids)).flatten(0, 1)
    np.testing.assert_allclose(found["output.weight"], hidden.square().mean(0), rtol=1e-3)
    experts = found["blk.1.ffn_down_exps.weight"].reshape(model.spec.mlps[1].router.num_experts, -1)
    assert (experts > 0).any(1).all() and not np.allclose(experts[0], experts[1])


def test_as_transformers_reads_it(conversion: Any, model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    there, back = conversion
    there.convert(model, tmp_path / "model.gguf", mtp=False)
    back.convert(tmp_path / "model.gguf", tmp_path / "again")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    written = Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    for text in ("a word, about 12 more\n", "<eos>x"):
        assert written.encode(text).ids == tokenizer(text).input_ids
