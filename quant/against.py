"""Two checkpoints side by side over the same texts, one layer in memory: what each says, and how far their layers are
apart. Nothing is changed and nothing is written but scratch files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llmc.contracts.layer_errors import LayerErrors, rounded
from llmc.contracts.progress import ProgressFunction, Silent
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import DecoderLayer, MixtureOfExperts, load_embedding, load_stored_layer
from llmc.errors import InputError
from llmc.quant.activation_file import CPU, ActivationFile
from llmc.quant.durable import write_json
from llmc.quant.layer_errors import ExpertErrors, chosen_experts, compare_routing, distance, matched_experts
from llmc.quant.layer_run import advance
from llmc.quant.overflow import OverflowInModelError, explained
from llmc.quant.reference import Answers, End, fill
from llmc.quant.steps import Made, Step, run_steps

SIDES = ORIGINAL, OTHER = "original", "quantized"  # parts of names of streams, and of errors about them
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        answers: By text.
        layers: Of the first text.
    """

    answers: dict[str, Answers]
    layers: list[LayerErrors]


def compare(
    original: Checkpoint,
    other: Checkpoint,
    texts: Mapping[str, torch.Tensor],
    work_dir: Path,
    *,
    experts_within: int = 0,
    device: torch.device = CPU,
    progress: ProgressFunction = Silent(),  # noqa: B008
    unchanged: Callable[[], None] = _nothing,
    tell: Callable[[str], None] = _nothing,
) -> Compared:
    """Take texts through both models, layer by layer, in float32, and their logits through a softmax in float64.

    A comparison that was interrupted goes on behind the last finished layer.

    Args:
        original: What the other was made from.
        other: In any format that `Checkpoint` reads; experts may be missing or in another order.
        texts: Name → ids [N, L] int64; the first is what layers are compared on.
        work_dir: Belongs to these checkpoints and texts alone; takes `16 hidden` bytes per token.
        experts_within: Bytes that a layer of both models may take together; the outputs of experts are compared in
            layers where that suffices, otherwise one is in memory after the other.
        device: Where layers are computed.
        progress: Is told; layers are those of the models, and one for the head.
        unchanged: Raises when the checkpoints' files are not what they were.
        tell: Is told in a line what of an interrupted comparison is damaged.

    Raises:
        InputError: For checkpoints that are not of one kind, and activations beyond what float32 holds.
    """
    require_alike(original, other)
    pair = _Pair((original, other), texts, work_dir, experts_within, device, progress)
    try:
        run_steps(work_dir, pair.steps(), unchanged, tell)
    except OverflowInModelError as error:
        raise explained(error, original if ORIGINAL in str(error) else other, pair.place) from error
    return pair.result()


def require_alike(original: Checkpoint, other: Checkpoint) -> None:
    """InputError, with what differs, for a checkpoint that cannot have been made from the other."""
    for name, what in (
        ("vocab_size", "tokens"),
        ("num_layers", "layers"),
        ("hidden_size", "channels"),
    ):
        mine, its = (getattr(each.spec, name) for each in (original, other))
        if mine != its:
            raise InputError(
                f"{other.path}: has {its:,} {what}, but {original.path} has {mine:,}; give the model that it was made "
                "from"
            )


def step_sizes(original: Checkpoint, other: Checkpoint) -> list[int]:
    """How long each step of `compare` takes, up to a factor: the layers, and the head."""
    layers = [f"model.layers.{index}." for index in range(original.spec.num_layers)]
    return [original.nbytes(name) + other.nbytes(name) for name in layers] + [2 * original.nbytes(f"{_EMBEDDING}.")]


@dataclass
class _Pair:
    checkpoints: tuple[Checkpoint, Checkpoint]
    texts: Mapping[str, torch.Tensor]
    work_dir: Path
    experts_within: int
    device: torch.device
    progress: ProgressFunction
    place: tuple[str, ...] = (_EMBEDDING,)  # the modules at work, for errors

    @property
    def first(self) -> str:
        """The text that layers are compared on."""
        return next(iter(self.texts))

    @property
    def layers(self) -> int:
        return self.checkpoints[0].spec.num_layers

    def steps(self) -> list[Step]:
        """In the order in which they are done."""
        steps = [Step("embedding", (), self._embed)]
        steps += [Step(f"layer-{i:05d}", self._reads(i), partial(self._layer, i)) for i in range(self.layers)]
        return [*steps, Step("answers", self._reads(self.layers), self._answer)]

    def result(self) -> Compared:
        """Of all steps, which are finished."""
        answers = {}
        for text in self.texts:
            found = load_file(self._answers_path(text))
            answers[text] = Answers(**{field.name: found[field.name] for field in fields(Answers)})
        paths = (self._layer_path(index) for index in range(self.layers))
        return Compared(answers, [LayerErrors.model_validate(json.loads(path.read_bytes())) for path in paths])

    def _stream(self, side: str, text: str, index: int) -> ActivationFile:
        """What enters a layer."""
        rows, length = self.texts[text].shape
        shape = (rows, length, self.checkpoints[0].spec.hidden_size)
        return ActivationFile(self.work_dir, f"{side}-{text}", index, shape, self.device)

    def _streams(self, index: int) -> list[ActivationFile]:
        return [self._stream(side, text, index) for side in SIDES for text in self.texts]

    def _reads(self, index: int) -> tuple[str, ...]:
        return tuple(each.path.name for each in self._streams(index))

    def _layer_path(self, index: int) -> Path:
        return self.work_dir / f"errors-{index:05d}.json"

    def _answers_path(self, text: str) -> Path:
        return self.work_dir / f"answers-{text}.safetensors"

    def _embed(self) -> Made:
        for side, checkpoint in zip(SIDES, self.checkpoints, strict=True):
            table = load_embedding(checkpoint)
            for text, ids in self.texts.items():
                self._stream(side, text, 0).embed(ids, table)
        return Made(each.path for each in self._streams(0))

    # One layer ---------------------------------------------------------------------------------------------------

    def _layer(self, index: int) -> Made:
        self.place = (f"model.layers.{index}",)
        nbytes = sum(each.nbytes(f"model.layers.{index}.") for each in self.checkpoints)
        other = self._load(1, index) if nbytes <= self.experts_within else None
        layer, experts, router = self._load(0, index), None, None
        with ExitStack() as stack:
            chosen = stack.enter_context(chosen_experts(layer))
            if isinstance(layer.mlp, MixtureOfExperts):
                router = layer.mlp.gate.weight
                if other is not None and isinstance(other.mlp, MixtureOfExperts):
                    experts = stack.enter_context(ExpertErrors(layer.mlp, other.mlp))
            self._advance(layer, ORIGINAL, self.first, index)
        self._advance_rest(layer, ORIGINAL, index)
        del layer
        other = other or self._load(1, index)
        with chosen_experts(other) as chosen_now:
            self._advance(other, OTHER, self.first, index)
        self._advance_rest(other, OTHER, index)
        apart, cosine = distance(*(self._stream(side, self.first, index + 1) for side in SIDES))
        found = LayerErrors(layer=index, error=apart, cosine=rounded(cosine))
        if router is not None and isinstance(other.mlp, MixtureOfExperts):
            # Without counterparts nobody can tell which experts are the same.
            numbers = matched_experts(router, other.mlp.gate.weight)
            routing = compare_routing(chosen, chosen_now, len(router), numbers) if numbers else None
            if routing is not None and experts is not None:
                routing = routing.model_copy(update={"expert_errors": experts.relative()})
            found = found.model_copy(update={"routing": routing} if routing else {})
        write_json(self._layer_path(index), found.to_json())
        return Made((each.path for each in self._streams(index + 1)), [self._layer_path(index)])

    def _load(self, side: int, index: int) -> DecoderLayer:
        return load_stored_layer(self.checkpoints[side], index).to(self.device)

    def _advance_rest(self, layer: DecoderLayer, side: str, index: int) -> None:
        for text in list(self.texts)[1:]:
            self._advance(layer, side, text, index)

    def _advance(self, layer: DecoderLayer, side: str, text: str, index: int) -> None:
        def report(done: int, total: int) -> None:
            self.progress(
                f"{text}, {'original' if side == ORIGINAL else 'artifact'}", done, total, index, self.layers + 1
            )

        advance(layer, self._stream(side, text, index), report)

    # The end -----------------------------------------------------------------------------------------------------

    def _answer(self) -> Made:
        self.place = ("model.norm", _HEAD)
        ends = [End.of(*each, self.device) for each in zip(SIDES, self.checkpoints, strict=True)]
        for text, ids in self.texts.items():
            answers = Answers.blank(len(ids), ids.shape[1] - 1, ends[0].head.shape[0], whole=False)
            streams = (self._stream(side, text, self.layers) for side in SIDES)
            report = partial(self._report_head, f"logits, {text}")
            fill(answers, ids, [*zip(ends, streams, strict=True)], report)
            save_file({each.name: getattr(answers, each.name) for each in fields(answers)}, self._answers_path(text))
        return Made((), map(self._answers_path, self.texts))

    def _report_head(self, phase: str, done: int, total: int) -> None:
        self.progress(phase, done, total, self.layers, self.layers + 1)
