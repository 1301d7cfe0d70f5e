"""A way back through a model, one layer in memory: what linear layers read, and the gradients of what they make.

The text goes forward first and leaves every layer's inputs on disk. Labels are drawn from what the model itself says;
then layer by layer, last to first, each is computed once more on its inputs, with autograd, and the gradient of these
goes to the layer before. Which experts a token gets does not change with infinitely small steps: their weights have
gradients, the choice has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from llmc.contracts.progress import ProgressFunction, Silent
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import Linear, load_stored_layer
from llmc.quant.activation_file import CPU, MICRO_BATCH_TOKENS, ActivationFile
from llmc.quant.drawn_labels import DrawnLabels
from llmc.quant.layer_inputs import LayerInputs
from llmc.quant.observed import Observed, ObservedLinear, Observer, SavedBytes, Visit
from llmc.quant.overflow import OverflowInModelError, explained
from llmc.quant.steps import Made, Step, run_steps

__all__ = ["Observed", "Visit", "backward", "step_sizes"]
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
SILENT = Silent()


def nothing(*_: object) -> None:
    pass


def _no_results(place: str) -> Iterable[Path]:
    return ()


def backward(
    checkpoint: Checkpoint,
    ids: torch.Tensor,
    work_dir: Path,
    visit: Visit,
    *,
    draws: int = 1,
    seed: int = 0,
    memory_budget: int = 4 << 30,
    device: torch.device = CPU,
    progress: ProgressFunction = SILENT,
    finish: Callable[[str], Iterable[Path]] = _no_results,
    with_embedding: bool = False,
    unchanged: Callable[[], None] = nothing,
    tell: Callable[[str], None] = nothing,
) -> None:
    """Shows `visit` what every linear layer of the decoder and MTP layers reads, and the gradient of what it makes.

    The gradient is that of the log-likelihood of drawn labels, one for each token, summed over a row's tokens. MTP
    layers have labels of their own, drawn from what their heads say of the token after the next; nothing of those
    reaches the decoder layers, whose gradients are about the model's output alone. The order is `lm_head`, MTP layers,
    decoder layers from last to first, embedding; a module is visited once per draw and part of the rows. Of a row come
    all tokens at once, except to `lm_head`, whose outputs are as wide as the vocabulary.

    A pass that was interrupted goes on behind the last finished layer, and shows what an uninterrupted one would have
    shown, bit for bit; layers that are finished are not shown again. What is to outlive an interruption is therefore
    written when `finish` asks for it.

    Args:
        checkpoint: the original model
        ids: [N, L] int64; whole rows are worked on, since attention mixes their tokens
        work_dir: belongs to this checkpoint, these ids, draws and seed and this visitor alone; takes `4 N L hidden`
            bytes per layer
        visit: is shown every module; it may keep what it is shown
        draws: how often labels are drawn for the same rows, which is cheaper than other rows
        seed: of the labels
        memory_budget: bytes, a quarter for what is kept of a layer's way forward (of one row at least), an eighth for
            logits; the rest is left to the visitor
        device: where layers are computed
        progress: is told; what it counts as layers are steps: forward through each layer, the head, and back through
            each, see `step_sizes`
        finish: is called with "lm_head", "model.layers.<index>" or "model.embed_tokens" when all of that was shown;
            returns what files in `work_dir` were made of it. It is called again if they are damaged in the end.
        with_embedding: whether `model.embed_tokens` is shown, whose `x` are ids
        unchanged: raises when the checkpoint's files are not what they were
        tell: is told in a line what of an interrupted pass is damaged

    Raises:
        InputError: for activations beyond what float32 holds
    """
    budget = memory_budget // 4, memory_budget // 8
    model = _Backward(checkpoint, ids, work_dir, visit, draws, seed, budget, device, progress, finish)
    try:
        run_steps(work_dir, model.steps(with_embedding), unchanged, tell)
    except OverflowInModelError as error:
        raise explained(error, checkpoint, model.place) from error


def step_sizes(checkpoint: Checkpoint, with_embedding: bool = False) -> list[int]:
    """Return how long each step of `backward` takes, up to a factor, as a display of progress wants to know."""
    last, layers = checkpoint.spec.num_layers, checkpoint.spec.num_all_layers
    sizes = [checkpoint.nbytes(f"model.layers.{index}.") for index in range(layers)]
    back = [4 * size for size in (*reversed(sizes[last:]), *reversed(sizes[:last]))]
    head = 3 * checkpoint.nbytes(f"{EMBEDDING}.")
    return [*sizes[: max(last, layers - 1)], head, *back, *([1] if with_embedding else [])]


class _Backward:
    def __init__(
        self,
        checkpoint: Checkpoint,
        ids: torch.Tensor,
        work_dir: Path,
        visit: Visit,
        draws: int,
        seed: int,
        budget: tuple[int, int],
        device: torch.device,
        progress: ProgressFunction,
        finish: Callable[[str], Iterable[Path]],
    ) -> None:
        self.checkpoint, self.spec, self.ids = checkpoint, checkpoint.spec, ids
        self.draws, self.seed, self.device = draws, seed, device
        self.room_for_layer, self.room_for_logits = budget
        self.inputs = LayerInputs(checkpoint, ids, work_dir, device, self.room_for_layer)
        self.observer, self.progress, self.finish = Observer(visit), progress, finish
        # The last MTP layers have nothing to say of rows that are too short.
        self.layers = min(self.spec.num_all_layers, self.spec.num_layers + ids.shape[1] - 1)
        self.place: tuple[str, ...] = (EMBEDDING,)  # the modules at work, for errors
        self.number, self.count = 0, 1  # of the step at work, and how many there are, for progress

    def steps(self, with_embedding: bool) -> list[Step]:
        """In the order in which they are done."""
        last, layers = self.spec.num_layers, self.layers
        forward = range(max(last, layers - 1))
        steps = [Step(f"forward-{i:05d}", self._reads(i), partial(self._forward, i)) for i in forward]
        steps.append(Step("lm-head", self._reads(last), self._head))
        for i in reversed(range(last, layers)):
            reads = self._reads(i) if i + 1 == layers else self._reads(i, i + 1)
            steps.append(Step(f"backward-{i:05d}", reads, partial(self._backward_mtp, i)))
        for i in reversed(range(last)):
            steps.append(Step(f"backward-{i:05d}", self._reads(i, i + 1), partial(self._backward, i)))
        if with_embedding:
            steps.append(Step("embedding", tuple(file.path.name for file in self._gradients(0)), self._embedding))
        self.count = len(steps)
        return [replace(step, run=partial(self._numbered, number, step.run)) for number, step in enumerate(steps)]

    def _numbered(self, number: int, run: Callable[[], Made]) -> Made:
        self.number = number
        return run()

    def _reads(self, index: int, gradient: int | None = None) -> tuple[str, ...]:
        files = [self.inputs.file(index), *([] if gradient is None else self._gradients(gradient))]
        return tuple(file.path.name for file in files)

    def _gradients(self, index: int) -> list[ActivationFile]:
        """Of what enters a layer, for each draw; of an MTP layer without those that its own loss starts with."""
        return self.inputs.gradients(index, self.draws)

    def _report(self, phase: str, rows: int) -> None:
        self.progress(phase, rows * self.ids.shape[1], self.ids.numel(), self.number, self.count)

    def _forward(self, index: int) -> Made:
        self.place = (f"model.layers.{index}",)
        return self.inputs.compute(index, self._report)

    def _labels(self, observer: Observer) -> DrawnLabels:
        name = EMBEDDING if self.spec.tie_word_embeddings else HEAD
        head = ObservedLinear(self._matrix(name), HEAD, observer)
        return DrawnLabels(self.spec, head, self.seed, self.draws, self.room_for_logits)

    def _matrix(self, name: str) -> Linear:
        """Embedding or head, as stored."""
        linear = Linear(self.spec.hidden_size, self.spec.vocab_size, bias=False, device="meta")
        if codes := self.checkpoint.quantized(name):
            linear.hold(codes)
        else:
            linear.weight = nn.Parameter(self.checkpoint.tensor(f"{name}.weight", None), requires_grad=False)
        return linear.to(self.device)

    def _head(self) -> Made:
        """From the labels to what enters the final norm."""
        self.place = "model.norm", EMBEDDING if self.spec.tie_word_embeddings else HEAD
        x, labels = self.inputs.file(self.spec.num_layers), self._labels(self.observer)
        targets = [file.create() for file in self._gradients(x.layer)]
        for row in range(len(self.ids)):
            rows = slice(row, row + 1)
            hidden = x.read(rows).requires_grad_()
            normed = self.inputs.norm(hidden)
            found = labels.gradients(normed.detach()[0], row, kind=0)
            self._back(normed, hidden, found[:, None], targets, rows)
            self._report("gradients, head", row + 1)
        return self._finished(HEAD, targets)

    def _backward(self, index: int) -> Made:
        self.place = (f"model.layers.{index}",)
        following = self._gradients(index + 1)
        targets = [file.create() for file in self._gradients(index)]
        for rows, y, x in self._through(index):
            self._back(y, x, torch.stack([file.read(rows) for file in following]), targets, rows)
        return self._finished(self.place[0], targets)

    def _backward_mtp(self, index: int) -> Made:
        """From the labels of this layer, and of those behind it, to what enters it; for the first that is the end."""
        self.place = (f"model.layers.{index}",)
        following = self._gradients(index + 1) if index + 1 < self.layers else []
        targets = [file.create() for file in self._gradients(index)] if index > self.spec.num_layers else []
        labels, kind = self._labels(Observer(nothing)), 1 + index - self.spec.num_layers
        for rows, y, x in self._through(index):
            found = torch.stack([labels.gradients(each.detach(), rows.start + n, kind) for n, each in enumerate(y)], 1)
            if following:
                found += torch.stack([file.read(rows)[:, : y.shape[1]] for file in following])
            self._back(y, x, found, targets, rows)
        return self._finished(self.place[0], targets)

    def _through(self, index: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Rows, what leaves the layer, and what enters it, joined by autograd's graph: as many rows at a time as there
        is room for, by what the first of them took.
        """
        layer = load_stored_layer(self.checkpoint, index).to(self.device)
        self.observer.watch(layer, f"model.layers.{index}.")
        start, step, count = 0, 1, len(self.ids)
        while start < count:
            rows = slice(start, min(start + step, count))
            *first, x, places = self.inputs.entering(index, rows)
            self.observer.rows, self.observer.length = rows, x.shape[1]
            with torch.enable_grad(), (saved := SavedBytes()):
                x.requires_grad_()
                y = layer(*first, x, places)
            yield rows, y, x
            if start == 0:
                fitting = self.room_for_layer // (2 * max(1, saved.count))
                step = max(1, min(fitting, MICRO_BATCH_TOKENS // x.shape[1]))
            start = rows.stop
            self._report(f"gradients, layer {index + 1}", start)

    def _back(
        self, y: torch.Tensor, x: torch.Tensor, gradients: torch.Tensor, targets: list[ActivationFile], rows: slice
    ) -> None:
        """Gradients of y [draws, B, S, H] to x, and to whoever observes what is between; targets: none, or of x."""
        for draw, gradient in enumerate(gradients):
            self.observer.draw = draw
            (found,) = torch.autograd.grad(y, x, gradient, retain_graph=draw + 1 < self.draws)
            if targets:
                whole = functional.pad(found, (0, 0, 0, self.ids.shape[1] - found.shape[1]))
                targets[draw].write(rows, whole)

    def _finished(self, place: str, targets: list[ActivationFile]) -> Made:
        for file in targets:
            file.flush()
        return Made([file.path for file in targets], self.finish(place))

    def _embedding(self) -> Made:
        self.place = (EMBEDDING,)
        linear, length = self._matrix(EMBEDDING), self.ids.shape[1]
        for draw, file in enumerate(self._gradients(0)):
            for rows in file.micro_batches():
                gradient = file.read(rows).flatten(0, 1) * self.spec.embedding_scale
                sequence = torch.arange(rows.start, rows.stop, device=self.device).repeat_interleave(length)
                ids = self.ids[rows].flatten().to(self.device)
                self.observer.visit(Observed(EMBEDDING, ids, gradient, sequence, linear, draw))
        self._report("gradients, embedding", len(self.ids))
        return self._finished(EMBEDDING, [])
