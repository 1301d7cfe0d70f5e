"""Target `genai`: what torch says, said by a graph with growing caches, and by onnxruntime-genai where it is."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.architectures import yarn
from support.graph_session import divergences
from support.model_lines import published_config
from support.quantized_checkpoint import DEEPSEEK, DENSE, EXACT, quantized_checkpoint, quantized_copy
from support.random_checkpoint import LLAMA, QWEN2
from support.small_config import small_config
from support.small_model import save, witness

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.targets import target
from llmc.errors import InputError
from llmc.runtime.quiet_onnxruntime import onnxruntime as ort

INT4 = dict.fromkeys(("dense_mlp", "attention"), "int4-g32")
PROMPT = 9
EXACTLY = target("genai").Options(accuracy_level=1)


def build(folder: Path, config: dict[str, Any], schemes: dict[str, str]) -> Checkpoint:
    checkpoint = quantized_checkpoint(folder, config, schemes)
    target("genai").build(checkpoint, EXACTLY, checkpoint.path, lambda *_: None)
    return checkpoint


def said(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Logits by plain ONNX Runtime, as optimum runs it: prefill, several tokens, then one at a time."""
    config = json.loads((checkpoint.path / "genai_config.json").read_text())["model"]["decoder"]
    names, layers = config["inputs"], range(config["num_hidden_layers"])
    session = ort.InferenceSession(str(checkpoint.path / config["filename"]), providers=["CPUExecutionProvider"])
    pairs = [
        (names[f"past_{kind}_names"] % layer, config["outputs"][f"present_{kind}_names"] % layer)
        for layer in layers
        for kind in ("key", "value")
    ]
    empty = np.zeros([len(ids), config["num_key_value_heads"], 0, config["head_size"]], np.float32)
    caches = {past: empty for past, _ in pairs}
    found = []
    steps = [0, PROMPT, PROMPT + 3, *range(PROMPT + 4, ids.shape[1] + 1)]
    for start, end in pairwise(steps):
        positions = np.tile(np.arange(start, end), (len(ids), 1))
        mask = np.ones((len(ids), end), np.int64)
        feeds = {"input_ids": ids[:, start:end].numpy(), "position_ids": positions, "attention_mask": mask}
        logits, *presents = session.run(["logits", *(present for _, present in pairs)], feeds | caches)
        caches = dict(zip(caches, presents, strict=True))
        assert presents[0].shape[2] == end
        found.append(torch.from_numpy(logits))
    return torch.cat(found, 1)


CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "llama": (LLAMA | DENSE, INT4),
    "biases": (QWEN2 | DENSE | {"head_dim": 32}, INT4),
    "yarn": (LLAMA | DENSE | yarn(attention_factor=0.9), INT4),
    "head size that is not rotated": (LLAMA | DENSE | {"head_dim": 24}, INT4),
}
# Norms of heads; experts, of which onnxruntime-genai's own builder refuses Qwen3-MoE's.
PUBLISHED = {
    "Qwen--Qwen3-0.6B": {"dense_mlp": "int4-g32"},
    "Qwen--Qwen3-30B-A3B": {"experts": "int4-g32"},
    "mistralai--Mixtral-8x7B-v0.1": {"experts": "int4-g32"},
}


def published(name: str, folder: Path) -> Checkpoint:
    config = small_config(published_config(name))
    source = Checkpoint.open(save(witness(config), config, folder / "source"))
    checkpoint = quantized_copy(source, PUBLISHED[name], folder)
    target("genai").build(checkpoint, EXACTLY, checkpoint.path, lambda *_: None)
    return checkpoint


def agree(checkpoint: Checkpoint) -> None:
    vocabulary = checkpoint.spec.vocab_size
    ids = torch.randint(0, vocabulary, (2, 20), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(checkpoint)
    expected = model.logits(model.hidden(ids))
    assert float(divergences(expected, said(checkpoint, ids)).max()) < EXACT


@pytest.mark.parametrize("name", CASES)
def test_graph_says_what_torch_says(name: str, tmp_path: Path) -> None:
    agree(build(tmp_path, *CASES[name]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str, tmp_path: Path) -> None:
    agree(published(name, tmp_path))


def test_latent_caches_are_refused(tmp_path: Path) -> None:
    checkpoint = quantized_checkpoint(tmp_path, DEEPSEEK, {})
    genai = target("genai")
    with pytest.raises(InputError, match=r"^target genai: .* keep keys and values of heads, and deepseek_v3 keeps"):
        genai.check(checkpoint.spec, genai.Options(), {})


@pytest.mark.parametrize("name", ["llama", "Qwen--Qwen3-30B-A3B"])
def test_onnxruntime_genai_decodes(name: str, tmp_path: Path) -> None:
    """Logits of a prompt, and then torch's most likely tokens, in buffers that past and present share."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    checkpoint = build(tmp_path, *CASES[name]) if name in CASES else published(name, tmp_path)
    ids = torch.randint(3, 90, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(checkpoint)
    options = genai.GeneratorParams(opened := genai.Model(str(checkpoint.path)))
    options.set_search_options(max_length=PROMPT + 8, do_sample=False)
    generator = genai.Generator(opened, options)
    generator.append_tokens(ids.numpy().astype(np.int32))
    got = torch.from_numpy(np.array(generator.get_output("logits"), np.float32))
    assert float(divergences(model.logits(model.hidden(ids)), got).max()) < EXACT
    while not generator.is_done():
        generator.generate_next_token()
    answer = torch.tensor(generator.get_sequence(0))
    assert len(answer) > PROMPT
    expected = model.logits(model.hidden(answer[None, :-1].long())).argmax(-1)[0, PROMPT - 1 :]
    assert answer[PROMPT:].tolist() == expected.tolist()
