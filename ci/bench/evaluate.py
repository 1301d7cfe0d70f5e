"""Measures quantized checkpoints against the original: whatever tool wrote them, one reader and one model."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.quant.assign import linear_modules


@dataclass
class Evaluation:
    """kl: mean over tokens, nats; ppl: of the check text; missed: linear layers of the decoder left in floats."""

    kl: float
    ppl: float
    missed: int
    mtp: str


def logits(checkpoint: Path, ids: torch.Tensor) -> list[torch.Tensor]:
    """float32 [L - 1, vocab] per row: what is said of every next token."""
    model = CausalLM.load(Checkpoint.open(checkpoint))
    return [model.logits(model.hidden(row[None]))[0, :-1] for row in ids]


def perplexity(said: list[torch.Tensor], ids: torch.Tensor) -> float:
    losses = [torch.nn.functional.cross_entropy(x, row[1:]) for x, row in zip(said, ids, strict=True)]
    return math.exp(torch.stack(losses).mean())


def evaluate(result: Path, original: Path, ids: torch.Tensor, reference: list[torch.Tensor]) -> Evaluation:
    """`reference`: what `logits` gives for the original; ids [N, L]."""
    source = Checkpoint.open(original)
    with tempfile.TemporaryDirectory() as directory:
        readable, mtp = _without_lost_layers(result, source, Path(directory))
        checkpoint = Checkpoint.open(readable)
        decoder = [m for m in linear_modules(source) if int(m.split(".")[2]) < source.spec.num_layers]
        missed = sum(checkpoint.kind(f"{module}.weight") is None for module in decoder)
        said = logits(readable, ids)
    kl = [
        torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True)
        for p, q in zip(reference, said, strict=True)
    ]
    return Evaluation(torch.stack(kl).mean().item(), perplexity(said, ids), missed, mtp)


def _without_lost_layers(result: Path, source: Checkpoint, directory: Path) -> tuple[Path, str]:
    """The result, with a config that does not promise MTP layers it has lost; and what became of them."""
    if not source.spec.num_mtp_layers:
        return result, "–"
    config = json.loads((result / "config.json").read_text())
    prefixes = tuple(f"model.layers.{source.spec.num_layers + i}." for i in range(source.spec.num_mtp_layers))
    index = result / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"] if index.exists() else _names(result)
    if any(name.startswith(prefixes) for name in names):
        return result, "kept"
    for file in result.iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, directory / file.name)  # links out of a checkpoint are refused
    (directory / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    return directory, "lost, config still promises it" if config.get("num_nextn_predict_layers") else "lost"


def _names(result: Path) -> list[str]:
    from llmc.convert.safetensors_file import read_header

    return list(read_header(result / "model.safetensors"))
