"""Real artifacts for the runtime: the embedded checkpoint and a random dense model, quantized and lowered."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from support.random_checkpoint import LLAMA, random_checkpoint
from tokenizers import Tokenizer

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.targets import target
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize

GATES = {"ppl_increase": 0.05, "kl_mean": 0.05, "top1": 0.9}


def make_artifact(source: Path, rules: list[Rule], text: torch.Tensor, directory: Path) -> Path:
    """Quantizes to nearest, lowers to ONNX Runtime and writes a manifest, without the front door."""
    artifact = directory / "artifact"
    quantize(Checkpoint.open(source), rules, None, text[:1], text, artifact, directory / "work", lambda *_: None)
    shutil.copy(source / "tokenizer.json", artifact)
    return lower(artifact, 1)


def lower(artifact: Path, level: int) -> Path:
    checkpoint = Checkpoint.open(artifact)
    onnxruntime = target("onnxruntime")
    options = onnxruntime.Options.model_validate({"accuracy_level": level})
    made = onnxruntime.build(checkpoint, options, artifact, lambda *_: None)
    spec = checkpoint.spec
    manifest = {
        "format_version": 1,
        "recipe": {"check": {"gates": GATES}},
        "targets": {"onnxruntime": {"files": made.files}},
        "model": {
            "vocab_size": spec.vocab_size,
            "max_position_embeddings": spec.max_position_embeddings,
            "eos_token_ids": list(spec.eos_token_ids),
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in artifact.iterdir()
            if path.name != "llmc.json"
        },
    }
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    return artifact


@pytest.fixture(scope="session")
def trained(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint: int4 experts, FP8 attention, MTP; accuracy level 1."""
    tokenizer = Tokenizer.from_file(str(embedded / "tokenizer.json"))
    ids = tokenizer.encode((Path(json.__file__)).read_text(encoding="utf-8")).ids
    text = torch.tensor(ids[: 4 * 192]).view(4, 192)
    rules = [Rule("experts", "int4-g64", "rtn"), Rule("attention", "fp8-block", "rtn")]
    return make_artifact(embedded, rules, text, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def trained_level_4(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lower(shutil.copytree(trained, tmp_path_factory.mktemp("level 4") / "artifact"), 4)


@pytest.fixture(scope="session")
def dense(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokens are bytes, without MTP."""
    config = LLAMA | {"vocab_size": 260, "intermediate_size": 128, "max_position_embeddings": 600, "eos_token_id": 1}
    source = random_checkpoint(tmp_path_factory.mktemp("llama"), config)
    shutil.copy(small_model / "tokenizer.json", source)
    text = torch.randint(2, 258, (3, 40), generator=torch.Generator().manual_seed(0))
    return make_artifact(source, [Rule("dense_mlp", "int4-g32", "rtn")], text, tmp_path_factory.mktemp("dense"))
