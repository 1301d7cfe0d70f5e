"""What the ladder that every model line climbs stands on: its small model, made once, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import PreTrainedModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.model import CausalLM
from llmc.convert.spec import ModelSpec
from support.model_lines import ModelLine, published_config
from support.small_config import small_config
from support.small_model import empty_witness, save, witness

# Log-probabilities; float32 leaves 1e-5 of them where attention or experts are summed in another order.
TOLERANCE = 1e-4
LENGTH = 60  # tokens, five times a window
_UNTRAINED = ("vision", "visual", "multi_modal_projector", "mm_projector")


class Climb:
    """A line on one rung."""

    def __init__(self, line: ModelLine, rung: str, said: dict[str, Any], reached_before: bool) -> None:
        self.line, self._said, self._reached_before = line, said, reached_before
        said |= {"line": line.name, "rung": rung}

    def note(self, **facts: Any) -> None:
        """Facts that the page shows: `difference`, the largest; …"""
        self._said |= facts

    def hole(self, reason: object) -> NoReturn:
        """Say why the line does not reach this rung."""
        text = " ".join(str(reason).split())
        if self._reached_before:
            pytest.fail(f"{self.line.name} no longer reaches this rung: {text}", pytrace=False)
        pytest.skip(text)


class SmallModel:
    """A line's model at a small size, in transformers and on disk."""

    def __init__(self, line: ModelLine, folder: Path) -> None:
        self.line, self.folder = line, folder
        self.config = small_config(published_config(line.tested))

    @cached_property
    def spec(self) -> ModelSpec:
        return family_of(self.config).spec(self.config)

    @cached_property
    def witness(self) -> PreTrainedModel:
        assert self.line.witness is not None
        return witness(self.config | self.line.witness)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(save(self.witness, self.config, self.folder / "source"))

    @cached_property
    def model(self) -> CausalLM:
        return CausalLM.load(self.checkpoint)

    def texts(self, rows: int = 2, length: int = LENGTH) -> torch.Tensor:
        """Random tokens [rows, length], none of them special."""
        vocabulary = self.spec.vocab_size - 1
        return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))

    def expected(self, ids: torch.Tensor) -> torch.Tensor:
        """What transformers says: log-probabilities [B, S, V]."""
        with torch.no_grad():
            return self.witness(input_ids=ids, use_cache=False).logits.log_softmax(-1)


def chunks(model: CausalLM, ids: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of a text that goes through the cache piece by piece."""
    caches = model.new_cache(ids.shape[0], ids.shape[1])
    pieces = zip([0, *cuts], [*cuts, ids.shape[1]], strict=True)
    hidden = torch.cat([model.hidden(ids[:, start:stop], caches) for start, stop in pieces], dim=1)
    return model.logits(hidden).log_softmax(-1)


def padded(texts: torch.Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows of `texts` overwritten by other tokens from their length on, as the runtime pads them: (row, length)."""
    for row, length in enumerate(lengths):
        texts[row, length:] = texts[row, 0]
        yield row, length


def parameters(config: dict[str, Any]) -> int:
    """Of the language model that a configuration describes, as llmc sees it: without layers for multi-token prediction
    and without a vision tower.
    """
    family = family_of(config)
    spec = family.spec(config)
    roles = {name: family.role(name, spec) for name in weight_shapes(spec)}
    shapes = weight_shapes(spec).items()
    return sum(torch.Size(shape).numel() for name, shape in shapes if roles[name] not in ("mtp", "vision"))


def published_parameters(config: dict[str, Any]) -> int:
    """The same, as transformers' class has it, with the buffers that are stored: a bias to select experts with."""
    model = empty_witness({key: value for key, value in config.items() if key != "quantization_config"})
    stored = model.state_dict().keys()
    tensors = [*model.named_parameters(), *((name, each) for name, each in model.named_buffers() if name in stored)]
    return sum(each.numel() for name, each in tensors if not any(part in name for part in _UNTRAINED))


def shared_key(line: ModelLine) -> str:
    """Equal for lines whose small models are the same."""
    return json.dumps([small_config(published_config(line.tested)), line.witness], sort_keys=True)
