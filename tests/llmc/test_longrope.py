"""Texts that grow beyond the original context of a model with LongRoPE: read as transformers' `generate` reads them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.random_checkpoint import LLAMA
from support.small_model import save, witness
from transformers import AutoModelForCausalLM, PreTrainedModel

import llmc
from llmc.runtime import Model, load

BORDER = 40
CONFIG: dict[str, Any] = LLAMA | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": 260,
    "eos_token_id": None,
    "pad_token_id": None,
    "original_max_position_embeddings": BORDER,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 2.0],
        "long_factor": [1.5, 3.0, 8.0, 20.0],
    },
}
IDS = torch.randint(3, 259, (3, 120), generator=torch.Generator().manual_seed(4))
PROMPTS = [IDS[0, :20].tolist(), IDS[1, :38].tolist(), IDS[2, :60].tolist()]


@pytest.fixture(scope="module")
def artifact(small_model: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("phi3")
    save(witness(CONFIG | {"rope_scaling": dict(CONFIG["rope_scaling"])}, seed=7), CONFIG, source)
    shutil.copy(small_model / "tokenizer.json", source)
    recipe = {
        "model": str(source),
        "calibration": {"text": str(text_file), "samples": 2, "length": 64},
        "quantize": [{"match": "attention", "scheme": "int8-g32", "method": "gptq"}],
        "targets": [{"onnxruntime": {"accuracy_level": 1}}],
        "check": {"text": str(text_file), "tokens": 256, "length": 64, "gates": {"kl_mean": 9.0}},
    }
    return llmc.build(recipe, tmp_path_factory.mktemp("build") / "artifact").path


@pytest.fixture(scope="module")
def published(artifact: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=1) as model:
        yield model


@pytest.fixture(params=[256, 7], ids=["in one go", "in parts"])
def parts(request: pytest.FixtureRequest, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.backend, "max_prefill_tokens", request.param)


def answered(published: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Greedy, by transformers."""
    made = published.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return made[0, len(prompt) :].tolist()


@pytest.mark.usefixtures("parts")
def test_answers_are_those_of_transformers(model: Model, published: PreTrainedModel) -> None:
    """In front of the border, across it, behind it; alone, and in one batch."""
    expected = [answered(published, prompt, 30) for prompt in PROMPTS]
    assert [model.generate(prompt, max_new_tokens=30).token_ids for prompt in PROMPTS] == expected
    together = model.generate(PROMPTS, max_new_tokens=30)
    assert [answer.token_ids for answer in together] == expected


@pytest.mark.usefixtures("parts")
def test_scores_are_those_of_the_whole_text(model: Model, published: PreTrainedModel) -> None:
    texts = [IDS[0, :40].tolist(), IDS[1, :41].tolist(), IDS[2, :100].tolist()]
    for ids, scores in zip(texts, model.score(texts, [1, 1, 1]), strict=True):
        with torch.no_grad():
            said = published(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        expected = said[torch.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose([each.logprob for each in scores], expected, atol=1e-4)


def test_a_session_forgets_what_was_rotated_otherwise(model: Model, published: PreTrainedModel) -> None:
    whole = IDS[0].tolist()
    session = model.session(whole[:20])
    counts = []
    for length in (30, 39, 50, 60, 25):
        answer = session.generate(whole[:length], max_new_tokens=4)
        assert answer.token_ids == answered(published, whole[:length], 4)
        counts.append(answer.cached_tokens)
    assert counts == [20, 30, 39, 50, 0]  # the second answer crossed the border
    copy = session.fork()
    assert copy.generate(whole[:30], max_new_tokens=4).cached_tokens == 25
    assert copy.generate(whole[:70], max_new_tokens=4).cached_tokens == 0


def test_the_check_computes_what_the_reference_did(artifact: Path) -> None:
    """Windows of 64 tokens, longer than the original context."""
    manifest = json.loads((artifact / "llmc.json").read_text(encoding="utf-8"))
    assert manifest["model"]["original_context"] == BORDER
    assert manifest["checks"]["kl_mean"] < 1e-3
