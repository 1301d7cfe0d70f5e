"""A checkpoint that answers as an artifact does: the torch blocks of the build behind the runtime's own `Model`.

Texts, templates, sampling and scores are those of the runtime, so that two models' answers differ by their weights and
by what computes with them, and by nothing else. The whole model is in memory, in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llmc import machine
from llmc.contracts.part import File
from llmc.contracts.run_manifest import FORMAT_VERSION, RunManifest, RunModel, RunRecipe
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model.cache import KeyValueCache, LatentCache, LayerCache, StateCache, layer_cache
from llmc.convert.model.causal_lm import CausalLM
from llmc.convert.spec import ModelSpec
from llmc.errors import InputError, MachineError
from llmc.progress import size
from llmc.quant.durable import describe
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import CLOSED, BoolArray, FloatArray, Graph, Hidden, ImageFeatures, IntArray
from llmc.runtime.model import Model
from llmc.runtime.tokenizer import Tokenizer

_BATCH, _PREFILL, _SCORES = 16, 256, 1 << 22  # bound the memory that a step takes
_FIRST_CAPACITY = 256
_TEMPLATES = "additional_chat_templates"
_GROWING = (LatentCache, KeyValueCache)


def load_original(path: Path, threads: int | None = None) -> Model:
    """Open a checkpoint's folder to be asked like an artifact.

    Raises:
        InputError: It is no checkpoint, a broken one, or one without tokenizer.json.
        MachineError: It does not fit into memory.
    """
    checkpoint = Checkpoint.open(path)
    weights = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names())
    if 4 * weights > (free := machine.memory()):
        raise MachineError(
            f"{path}: as the original it is held in memory, {size(4 * weights)} in float32, and {size(free)} are free; "
            "build it without `quantize` and give that artifact as --original, or use a larger machine"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    opened = _as_artifact(checkpoint)
    tokenizer = Tokenizer(opened, opened.vocab_size)
    opened = replace(opened, eos_token_ids=opened.eos_token_ids | set(tokenizer.eos_token_ids))
    backend = TorchBackend(checkpoint)
    return Model(opened, tokenizer, backend, "torch (float32 on the CPU)", speculative=False, draft_tokens=0)


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a checkpoint, by name."""
    return {name: describe(folder / name, File).sha256 for name in _names(folder)}


def _as_artifact(checkpoint: Checkpoint) -> Artifact:
    """What the runtime reads of a manifest, told of a checkpoint: its files, and what of config.json running needs."""
    spec = checkpoint.spec
    model = RunModel(
        max_position_embeddings=spec.max_position_embeddings,
        vocab_size=spec.vocab_size,
        eos_token_ids=list(spec.eos_token_ids),
        bos_token_id=spec.bos_token_id,
    )
    files = {name: describe(checkpoint.path / name, File) for name in _names(checkpoint.path)}
    manifest = RunManifest(format_version=FORMAT_VERSION, files=files, targets={}, model=model, recipe=RunRecipe())
    return Artifact(checkpoint.path, {}, manifest, frozenset(spec.eos_token_ids))


def _names(folder: Path) -> Iterator[str]:
    for path in sorted([*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")]):
        if path.is_file() and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()


class TorchCache:
    """One cache per layer, all rows in it; `capacity` tokens have room. Or some rows of another one, `whole`."""

    def __init__(self, spec: ModelSpec, batch: int, whole: TorchCache | None = None, first: int = 0) -> None:
        self.batch, self.capacity, self.whole, self.first = batch, 0, whole, first
        attentions = spec.attentions[: spec.num_layers]
        self.layers: list[LayerCache] = [layer_cache(attention, batch, 0) for attention in attentions]

    def make_room(self, end: int, most: int) -> None:
        """Capacity doubles up to `most` tokens, and what is there is copied."""
        if self.whole is not None:
            self.whole.make_room(end, most)
            self.layers = self.whole.rows(0, slice(self.first, self.first + self.batch))
            return
        if end <= self.capacity:
            return
        capacity = max(self.capacity, _FIRST_CAPACITY)
        while capacity < end:
            capacity *= 2
        self.capacity = min(capacity, most)
        for cache in self.layers:
            for name, part in _growing_parts(cache):
                grown = part.new_zeros(*part.shape[:2], self.capacity, part.shape[3])
                grown[:, :, : part.shape[2]] = part
                setattr(cache, name, grown)

    def rows(self, start: int, rows: slice) -> list[LayerCache]:
        """The same memory, of some rows, with `start` tokens in it."""
        views = []
        for cache in self.layers:
            view = copy.copy(cache)
            if not isinstance(cache, _GROWING) and cache.length != start and hasattr(view, "state"):
                raise InputError("a state cannot be rolled back; this model answers one text at a time")
            view.length = start
            for name, part in _growing_parts(cache):
                setattr(view, name, part[rows])
            views.append(view)
        return views


def _growing_parts(cache: LayerCache) -> list[tuple[str, torch.Tensor]]:
    return [(name, part) for name, part in vars(cache).items() if isinstance(cache, _GROWING) and name != "length"]


class TorchBackend:
    """The main graph on torch blocks; a `Backend`, without the MTP layer and without images."""

    has_mtp = has_vision = False
    original_context: int | None = None

    def __init__(self, checkpoint: Checkpoint) -> None:
        spec = checkpoint.spec
        self._model: CausalLM | None = CausalLM.load(checkpoint)
        self._spec = spec
        # Texts that LongRoPE rotates otherwise are left out.
        self.context = min(spec.max_position_embeddings, spec.original_context or spec.max_position_embeddings)
        one = TorchCache(spec, 1)
        states = any(isinstance(cache, StateCache) for cache in one.layers)
        self.batch = 1 if states else _BATCH  # a row whose text ends would go on changing its state
        self.max_prefill_tokens, self.max_attention_scores = _PREFILL, _SCORES
        one.make_room(1, 1)
        parts = [part for cache in one.layers for _, part in _growing_parts(cache)]
        self.cache_bytes = sum(part.numel() * part.element_size() for part in parts)

    def new_cache(self, batch: int) -> TorchCache:
        """As `Backend.new_cache`."""
        return TorchCache(self._spec, batch)

    def forward(
        self,
        graph: Graph,
        cache: TorchCache,
        input_ids: IntArray,
        cache_position: IntArray,
        logits_index: IntArray,
        hidden: Hidden | None = None,
        long: BoolArray | None = None,
        images: ImageFeatures | None = None,
    ) -> tuple[FloatArray, Hidden | None]:
        """As `Backend.forward`, of the main graph. Rows that stand at different places are computed one by one."""
        model = self._model
        if model is None:
            raise InputError(CLOSED)
        if (end := int(cache_position.max()) + input_ids.shape[1]) > self.context:
            raise InputError(f"{end} tokens do not fit the context of {self.context}; shorten prompt or answer")
        cache.make_room(end, self.context)
        ids = torch.tensor(input_ids)
        together = len(set(cache_position.tolist())) == 1
        parts = [slice(0, len(ids))] if together else [slice(row, row + 1) for row in range(len(ids))]
        found = []
        for rows in parts:
            views = cache.rows(int(cache_position[rows.start]), rows)
            found.append(model.hidden(ids[rows], views))
            if together:
                cache.layers = views
        states = torch.cat(found)
        index = torch.tensor(logits_index)[..., None].expand(-1, -1, states.shape[-1])
        return model.logits(states.gather(1, index)).numpy(), None

    def image_features(self, pixels: FloatArray) -> FloatArray:
        """InputError: it takes text alone."""
        raise InputError("the original is asked without images")

    def copy(self, source: TorchCache, rows: Sequence[int], length: int, target: TorchCache) -> None:
        """As `Backend.copy`."""
        for cache in (target, source):  # both may be rows of one cache, which grows with either
            cache.make_room(length, self.context)
        for given, taken in zip(source.layers, target.layers, strict=True):
            taken.length = length
            for name, part in vars(given).items():
                if isinstance(given, _GROWING) and isinstance(part, torch.Tensor):
                    getattr(taken, name)[:, :, :length] = part[list(rows), :, :length]
                elif isinstance(part, torch.Tensor):
                    setattr(taken, name, part[list(rows)])

    def rows(self, cache: TorchCache, first: int, count: int) -> TorchCache:
        """As `Backend.rows`."""
        return TorchCache(self._spec, count, cache, first)

    def trim(self, cache: TorchCache, length: int) -> None:
        """As `Backend.trim`: attention reads valid entries alone, so there is nothing to gain."""

    def close(self) -> None:
        """Free the weights."""
        self._model = None
