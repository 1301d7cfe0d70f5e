"""Artifacts that the runtime loads, made without the front door."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.targets import target
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize

GATES = {"ppl_increase": 0.05, "kl_mean": 0.05, "top1": 0.9}


def make_artifact(source: Path, rules: list[Rule], text: torch.Tensor, directory: Path) -> Path:
    """Quantizes to nearest, lowers to ONNX Runtime and writes a manifest, without the front door; `kl` beside it is
    what the pass measured.
    """
    artifact, work = directory / "artifact", directory / "work"
    made = quantize(Checkpoint.open(source), rules, None, text[:1], text, artifact, work, lambda *_: None)
    (directory / "kl").write_text(repr(made.kl))
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
            "images": checkpoint.vision.images.to_json() if checkpoint.vision else None,
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in artifact.iterdir()
            if path.name != "llmc.json"
        },
    }
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    return artifact
