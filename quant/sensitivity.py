"""What the model's output loses when one module is rounded, for every scheme that it could have, from one pass.

A change dW of a module's weight moves the log-likelihood of a text by <dW, gradient>, to first order. Over texts that
the model itself wrote, half the square of that is, in the mean, the KL divergence of the changed model from the
original: the quadratic form of the Fisher information (Amari, "Natural gradient works efficiently in learning", 1998).
Gradients are summed over a sequence before they are squared, since what a token's keys and values lose is lost to every
token behind it.

By chance a number is off by about `sqrt(2 / (sequences * draws))` of it, each module's for itself: sequences count, not
tokens, so they may be short. What one scheme of a module loses for what another does is told by what they change of its
outputs, which chance has hardly a part in: all schemes together say how much an output's change costs. SmolLM2-135M,
int3-g64, 64 sequences of 128 tokens, two draws: log correlation with the measured divergence of twelve modules 0.978,
sum 0.371 for 0.408, all 210 modules at once 2.35 for 1.98; of 16 sequences 0.96, of 8 0.93. What stays the same by
leaps has no gradient: tokens that go to other experts cost a module by itself more than is predicted, and all modules
at once hardly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llmc.contracts.layer_record import Sensitivities
from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import Linear
from llmc.convert.spec import ModelSpec
from llmc.convert.tensor_names import ModuleName
from llmc.quant.activation_file import CPU
from llmc.quant.change import ROWS, change
from llmc.quant.durable import write_json
from llmc.quant.gradients import EMBEDDING, HEAD, SILENT, Observed, backward, nothing
from llmc.quant.head_loss import head_losses
from llmc.quant.schemes.base import Scheme
from llmc.quant.solver_share import solver_share
from llmc.quant.token_file import TokenFile

_TOGETHER = 16  # sequences whose gradients are multiplied by the changes at once
_TOKENS = 4096  # at once, where inputs are rounded
_FEW = 256  # tokens, evenly spaced, whose outputs say what a scheme loses for another


def measure(
    checkpoint: Checkpoint,
    candidates: Mapping[str, Sequence[Scheme]],
    ids: torch.Tensor,
    work_dir: Path,
    *,
    solved: Collection[str] = (),
    draws: int = 2,
    seed: int = 0,
    memory_budget: int = 4 << 30,
    device: torch.device = CPU,
    progress: ProgressFunction = SILENT,
    unchanged: Callable[[], None] = nothing,
    tell: Callable[[str], None] = nothing,
) -> dict[str, dict[str, float]]:
    """What rounding each module alone costs, in nats per token: to nearest, or by a solver.

    Numbers of modules add up, since roundings have nothing to do with each other: all modules of a model at once cost
    about the sum. Those of MTP layers are no part of that sum. They are nats of the drafts' distribution, and what they
    cost is accepted drafts, not what the model says: at most sqrt(nats / 2) of them (Pinsker). Who shares bytes out
    between both multiplies them by what a draft is worth.

    `lm_head` and `model.embed_tokens` are told apart even where they are one matrix: then the two add up.

    Args:
        checkpoint: the original model
        candidates: module → schemes that fit it, of different names; modules that are not named are not measured
        ids: [N, L] int64
        work_dir: belongs to this checkpoint, these candidates, ids, draws and seed alone; what an interrupted pass left
            there is taken up. Takes, at a time, inputs of all layers, and those of one layer's modules with their
            gradients.
        solved: modules that are not rounded to nearest, but by GPTQ or what derives from it: what that leaves of a loss
            is estimated from the inputs, see `solver_share`
        draws: of labels for the same sequences
        seed: of the labels
        memory_budget: bytes
        device: where all is computed
        progress: is told, as by `backward`
        unchanged: raises when the checkpoint's files are not what they were
        tell: is told in a line what of an interrupted pass is damaged

    Returns:
        module → name of the scheme → KL divergence. 0 for an expert that no token came to.
    """
    collected = _Collected(checkpoint.spec, candidates, ids, work_dir, solved, draws, memory_budget, device, progress)
    backward(
        checkpoint,
        ids,
        work_dir,
        collected.add,
        draws=draws,
        seed=seed,
        memory_budget=memory_budget // 2,
        device=device,
        progress=collected.report,
        finish=collected.finish,
        with_embedding=EMBEDDING in candidates,
        unchanged=unchanged,
        tell=tell,
    )
    return collected.result()


@dataclass
class _Collected:
    """What a layer's modules read, and the gradients of what they make, on disk until the layer is finished: a module's
    changes, and its gradient for each sequence, are then in memory by themselves.
    """

    spec: ModelSpec
    candidates: Mapping[str, Sequence[Scheme]]
    ids: torch.Tensor
    work_dir: Path
    solved: Collection[str]
    draws: int
    memory_budget: int
    device: torch.device
    progress: ProgressFunction
    modules: dict[str, Linear] = field(default_factory=dict)
    step: tuple[int, int] = 0, 1  # at work, and how many there are
    shares: dict[str, float] = field(default_factory=dict)  # by what modules read

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of a layer that was not finished

    @property
    def folder(self) -> Path:
        return self.work_dir / "collected"

    def _file(self, module: str, part: str) -> TokenFile:
        return TokenFile(self.folder / f"{module}.{part}", self.device)

    def report(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        """Passes progress on, and notes how far the pass is."""
        self.step = layer, layers
        self.progress(phase, done, total, layer, layers)

    def add(self, seen: Observed) -> None:
        """Keeps what was shown, if it is asked for."""
        if not self.candidates.get(seen.module):
            return
        self.folder.mkdir(exist_ok=True)
        self.modules[seen.module] = seen.weight
        if seen.draw == 0:
            self._file(seen.module, "x").append(seen.x)
            self._file(seen.module, "sequence").append(seen.sequence)
        if seen.module != HEAD:  # whose loss needs none
            self._file(seen.module, f"gradient-{seen.draw}").append(seen.gradient)

    def finish(self, place: str) -> list[Path]:
        """Turns what was kept into losses, in a file."""
        losses, importance = {}, None
        for number, (name, linear) in enumerate(self.modules.items()):
            losses[name] = self._losses(name, linear)
            self.progress(f"losses, {name}", number + 1, len(self.modules), *self.step)
        if HEAD in losses:
            importance = _importance(self._file(HEAD, "x").read(self.spec.hidden_size)).tolist()
        self.modules, self.shares = {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)
        path = self._found(place)
        write_json(path, Sensitivities(losses=losses, importance=importance).to_json())
        return [path]

    def _found(self, place: str) -> Path:
        return self.work_dir / f"sensitivity-{place}.json"

    def result(self) -> dict[str, dict[str, float]]:
        """Of all places, in the order of the candidates."""
        found: dict[str, dict[str, float]] = {}
        for path in self.work_dir.glob("sensitivity-*.json"):
            found |= _read(path).losses
        nothing = {name: {each.name: 0.0 for each in schemes} for name, schemes in self.candidates.items()}
        return {name: found.get(name, zeros) for name, zeros in nothing.items()}

    def _losses(self, name: str, linear: Linear) -> dict[str, float]:
        schemes, room = self.candidates[name], self.memory_budget // 4
        x, sequence = self._file(name, "x"), self._file(name, "sequence").read_ids()
        if name == HEAD:
            found = head_losses(self.spec, linear, schemes, x.read(linear.in_features), room)
            share = self._share(name, linear, x.read(linear.in_features))
            return {scheme.name: share * loss for scheme, loss in zip(schemes, found, strict=True)}
        width = linear.in_features if name == EMBEDDING else linear.out_features
        gradients = [self._file(name, f"gradient-{draw}").read(width) for draw in range(self.draws)]
        if name == EMBEDDING:
            moved = _moved_by_embedding(linear, schemes, x.read_ids(), gradients, sequence, self._heads_importance())
        else:
            seen = _Seen(linear, x.read(linear.in_features), gradients, sequence, room)
            share = self._share(name, linear, seen.x)
            moved = share**0.5 * seen.moved(schemes) + seen.moved_by_inputs(schemes)
        losses = moved.square().sum(1).mean(0) / (2 * self._tokens(name))
        return {scheme.name: loss for scheme, loss in zip(schemes, losses.tolist(), strict=True)}

    def _heads_importance(self) -> torch.Tensor | None:
        """By which one matrix for embedding and head is rounded; None: it is rounded as an embedding."""
        if not (self.spec.tie_word_embeddings and HEAD in self.solved):
            return None
        return torch.tensor(_read(self._found(HEAD)).importance, device=self.device)

    def _share(self, name: str, linear: Linear, x: torch.Tensor) -> float:
        """Of what rounding to nearest loses."""
        if name not in self.solved:
            return 1.0
        source = ModuleName.parse(name).parent if linear.reads_block else name
        if source not in self.shares:
            self.shares[source] = solver_share(x, self.memory_budget // 4)
        return self.shares[source]

    def _tokens(self, name: str) -> int:
        """Whose log-likelihood the module's gradients are of."""
        rows, length = self.ids.shape
        depth = (ModuleName.parse(name).layer or 0) - self.spec.num_layers
        return rows * (length if depth < 0 else length - 1 - depth)


@dataclass(frozen=True)
class _Seen:
    """A module with what it read: x [n, in], gradients [n, out] for each draw, sequence [n] in rising order."""

    linear: Linear
    x: torch.Tensor
    gradients: list[torch.Tensor]
    sequence: torch.Tensor
    room: int

    def moved(self, schemes: Sequence[Scheme]) -> torch.Tensor:
        """[draws, sequences, schemes] float64, <dW, gradient> of each sequence, see `evened_out`."""
        weight, x = self.linear.full(), self.x
        _, counts = self.sequence.unique_consecutive(return_counts=True)
        parts = [slice(end - count, end) for end, count in zip(counts.cumsum(0).tolist(), counts.tolist(), strict=True)]
        importance = _importance(x)
        found = torch.zeros(len(self.gradients), len(parts), len(schemes), dtype=torch.float64)
        few, lost = x[:: -(-len(x) // _FEW)], torch.zeros(len(schemes), dtype=torch.float64)
        row_bytes = 4 * weight.shape[1] * (len(schemes) + _TOGETHER + 8)
        step = max(1, self.room // row_bytes // ROWS) * ROWS
        for start in range(0, len(weight), step):
            rows = slice(start, start + step)
            each = [change(weight[rows], scheme, importance) for scheme in schemes]
            lost += torch.stack([(few @ moved.mT).square().sum() for moved in each]).double().cpu()
            changes = torch.stack([moved.flatten() for moved in each], dim=1)
            for draw, gradient in enumerate(self.gradients):
                mine = gradient[:, rows]
                for first in range(0, len(parts), _TOGETHER):
                    some = parts[first : first + _TOGETHER]
                    of_weight = torch.stack([(mine[part].mT @ x[part]).flatten() for part in some])
                    found[draw, first : first + _TOGETHER] += (of_weight @ changes).double().cpu()
        return evened_out(found, lost)

    def moved_by_inputs(self, schemes: Sequence[Scheme]) -> torch.Tensor:
        """The same, [draws, sequences, schemes], of inputs that a scheme rounds."""
        weight = self.linear.full()
        _, order, _ = self.sequence.unique_consecutive(return_inverse=True, return_counts=True)
        found = torch.zeros(len(self.gradients), int(order[-1]) + 1, len(schemes), dtype=torch.float64)
        for number, scheme in enumerate(schemes):
            if scheme.activations is None:
                continue
            rounding = scheme.activations.at(self.x.abs().max().item())
            for start in range(0, len(self.x), _TOKENS):
                part = slice(start, start + _TOKENS)
                x = self.x[part]
                moved = rounding.rounded(x) - x
                for draw, gradient in enumerate(self.gradients):
                    each = ((gradient[part] @ weight) * moved).sum(-1).double().cpu()
                    found[draw, :, number].index_add_(0, order[part].cpu(), each)
        return found


def _importance(x: torch.Tensor) -> torch.Tensor:
    """[in], mean square of x [n, in], without a second x."""
    return torch.linalg.vector_norm(x, dim=0).square() / len(x)


def _read(path: Path) -> Sensitivities:
    return Sensitivities.model_validate(json.loads(path.read_bytes()))


def evened_out(moved: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
    """Return moved [draws, sequences, schemes] times a number per scheme, so that the sums of its squares are as lost
    [schemes] to each other, and in the mean of all schemes what they were.
    """
    squares = moved.square().sum((0, 1))
    known = (squares > 0) & (lost > 0)
    cost = (squares[known] / lost[known]).mean()
    return moved * torch.where(known, (cost * lost / squares).sqrt(), 1.0)


def _moved_by_embedding(
    linear: Linear,
    schemes: Sequence[Scheme],
    ids: torch.Tensor,
    gradients: list[torch.Tensor],
    sequence: torch.Tensor,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    """[draws, sequences, schemes], of the rows [n] that were looked up; importance [in] if they are a head's, too."""
    used, place = ids.unique(return_inverse=True)
    rows = linear.full(torch.float32)[used]
    found = torch.zeros(len(gradients), int(sequence[-1]) + 1, len(schemes), dtype=torch.float64)
    lost = torch.zeros(len(schemes), dtype=torch.float64)
    for number, scheme in enumerate(schemes):
        moved = change(rows, scheme, importance)[place]
        lost[number] = moved.square().sum()
        for draw, gradient in enumerate(gradients):
            found[draw, :, number].index_add_(0, sequence.cpu(), (moved * gradient).sum(-1).double().cpu())
    return evened_out(found, lost)
